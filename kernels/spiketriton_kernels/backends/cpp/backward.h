// The way back: the gradients of a block's neurons from the end of the window to its start, and what they leave.

#pragma once

#include "forward.h"

namespace {

// The columns of a probe's row, in the order of PROBE_FIELDS in arguments.py.
enum Probe { GRAD_SPIKE_SQ, GRAD_INPUT_SQ, GRAD_CARRY_SQ, TIME_FACTOR, OUTSIDE, SPIKE_COUNT, GRAD_INPUT_MAX, NONFINITE, PROBE_FIELDS };
constexpr double REACH = 0.01;

// Everything that the chunks sum, a row of doubles each, joined in their order.
struct Sums {
    enum Part { NORM, LEARNT, STEP_GAIN, PROBE, END };
    int64_t begins[END + 1] = {};
    Array<double> rows;

    Sums(const Call &c, int64_t chunks) {
        const int64_t counts[] = {c.out_sums ? 2 * c.channels : 0, c.out_constants ? c.rows * c.row_size : 0, c.out_step_gain ? c.steps : 0,
                                  c.out_probe ? c.steps * PROBE_FIELDS : 0};
        for (int part = 0; part < END; part++) begins[part + 1] = begins[part] + counts[part];
        rows.resize(chunks * begins[END]);
    }

    double *at(int64_t chunk, Part part) const { return rows.data() + chunk * begins[END] + begins[part]; }

    // The sums of all chunks, in the first row.
    void join() const {
        const int64_t size = begins[END];
        double *all = rows.data();
        for (const double *more = all + size; more < rows.end(); more += size)
            for (int64_t i = 0; i < size; i++) {
                const int64_t of_probe = i - begins[PROBE];
                all[i] = of_probe >= 0 && of_probe % PROBE_FIELDS == GRAD_INPUT_MAX ? std::max(all[i], more[i]) : all[i] + more[i];
            }
    }

    template <class X>
    void write(Part part, X *out) const {
        for (int64_t i = begins[part]; i < begins[part + 1]; i++) out[i - begins[part]] = X(rows[i]);
    }
};

// What the way back leaves besides the carried gradients.
enum Mode {
    WRITE,       // dL/dx in memory: the neuron alone
    ACCUMULATE,  // the channel sums of dz and dz * (x - mean), and in memory dL/dx or dy where asked for: batch norm
    LEARN,       // of a step that learns: both, and the sums of what it learns
    OBSERVE,     // everything rarer besides
};

// The way of a block back through the window. Memory as in Forth.
struct Back {
    const T *x, *residual, *grad_s, *grad_current;  // residual and grad_current may be null
    T *out, *dy;                                    // dL/dx, and dL/dy where it needs no sums; or null
    const A *grad_trace, *step_gain;                // or null
    int64_t stride;
    int size, n;
    bool past, given, wanted;                       // given, wanted: whether carried gradients are, after the last step and before the first

    Back(const Call &c, const Place &at, int size_, bool past_)
        : x(from<T>(c.x, at.start)), residual(from<T>(c.residual, at.start)), grad_s(from<T>(c.grad_spikes, at.start)),
          grad_current(from<T>(c.grad_current, at.start)), out(from<T>(c.out_dx, at.start)), dy(from<T>(c.out_dy, at.start)),
          grad_trace(from<A>(c.grad_trace, at.start)), step_gain(reals(c.step_gain)), stride(c.neurons), size(size_), n(at.n),
          past(past_ && at.start % LANES == 0), given(c.grad_states), wanted(c.out_states) {}
};

// What a thread keeps of a block on the way: states, and what of each step the way back reads; carried gradients; sums.
struct Kept {
    Array<A> states, of;                // of: ``kept`` of the window's steps, by kind
    Array<A> by, sum_dz, sum_dz_x;
    Array<A> learnt[CONSTANTS + 1];     // sums over the steps; empty of what has no row
    const Sums *sums = nullptr;
    int64_t chunk = 0;

    Kept(const Call &c, int size) : states(STATES * size), by(STATES * size), sum_dz(size), sum_dz_x(size) {
        of.resize(KEPT * size_t(size) * c.steps);
        for (int p = 0; c.out_constants && p < CONSTANTS; p++)
            if (LEARNS[c.form][p] && c.constants[p].row >= 0) learnt[p].resize(size);
    }
};

template <bool PART>
inline Vs only(Vs v, int n) {  // the lanes that are neurons
    if constexpr (PART) std::memset((A *)&v + n, 0, size_t(WIDE - n) * sizeof(A));
    return v;
}

inline double total(Vs v) {
    A lanes[WIDE];
    std::memcpy(lanes, &v, sizeof lanes);
    return total(lanes, WIDE);
}

template <int FORM, int MODE, bool ONE>
__attribute__((noinline)) void back_block(const Block &b, const Forth &replay, const Back &s, Kept &kept) {
    const Call &c = b.c;
    const int64_t last = c.steps - 1, after = later(last, c.steps, s.stride, s.size);
    const Rules<FORM, ONE> rules(b);
    const A *means = b.of[MEAN].data(), *scales = b.of[SCALE].data(), *biases = b.of[BIAS].data(), *rstds = b.of[RSTD].data(),
            *affines = b.of[AFFINE].data(), *tilts = b.of[SLOPE].data(), *offsets = b.of[OFFSET].data();
    A *by_of = kept.by.data(), *sum_dz = kept.sum_dz.data(), *sum_dz_x = kept.sum_dz_x.data();
    A *learnt[CONSTANTS + 1];
    for (int p = 0; p < CONSTANTS; p++) learnt[p] = kept.learnt[p].empty() ? nullptr : kept.learnt[p].data();
    for (int64_t t = last; t >= 0; t--) {
        const int64_t row = t * s.stride, in_window = t * s.size;
        const A k = s.step_gain ? s.step_gain[t] : A(1);
        const T *gs = s.grad_s + row, *x = s.x + row, *grad_current = s.grad_current ? s.grad_current + row : nullptr,
                *residual = s.residual ? s.residual + row : nullptr;
        const int64_t next = earlier(t, c.steps, s.stride, s.size);
        T *out = s.out ? s.out + row : nullptr, *dy = s.dy ? s.dy + row : nullptr;
        const A *of = kept.of.data() + in_window, *grad_trace = s.grad_trace ? s.grad_trace + row : nullptr;
        const bool past_caches = s.past;
        const int size = s.size;
        const int64_t window = c.steps * size;
        Vs probe[PROBE_FIELDS] = {}, by_step_gain{};
        groups(s.n, [&](auto part, int i, int n) {
            constexpr bool PART = decltype(part)::value;
            prefetch(gs + next + i, WIDE);
            if (out && !past_caches) prefetch_for_writing(out + next + i);
            if (grad_current) prefetch(grad_current + next + i, WIDE);
            const auto &r = rules.at(i);
            const Vs grad = gets<Vs, PART>(gs + i, n);
            Vs dx{}, by[STATES], of_step[KEPT];
            for (int k = 0; k < STATES; k++) by[k] = t < last || s.given ? loads<Vs>(by_of + k * size + i) : Vs{};
            if (t == last) {  // forth and back at once
                prefetch(x + after + i, WIDE);
                if (residual) prefetch(residual + after + i, WIDE);
                Vs current = gets<Vs, PART>(x + i, n), state[STATES];
                if (MODE != WRITE && c.mean) current = k * ((current - loads<Vs>(means + i)) * loads<Vs>(scales + i) + loads<Vs>(biases + i));
                if (residual) current = current + gets<Vs, PART>(residual + i, n);
                for (int k = 0; k < STATES; k++) state[k] = replay.before(t, k, i);
                StepAt<FORM>::forth(r, current, state, of_step);
            } else {
                for (int k = 0; k < KEEPS[FORM]; k++) of_step[k] = loads<Vs>(of + k * window + i);
            }
            if (MODE == OBSERVE && grad_trace) by[0] = by[0] + gets<Vs, PART>(grad_trace + i, n);
            const Vs carried = by[0];
            const auto observe = [&](Vs unit, Vs factor, Vs spikes) {
                const Vs size_of = absolute(dx);
                const auto finite = size_of <= std::numeric_limits<A>::max();
                const auto add = [&](Probe field, Vs value) { probe[field] += only<PART>(value, n); };
                add(GRAD_SPIKE_SQ, grad * grad);
                add(GRAD_INPUT_SQ, dx * dx);
                add(GRAD_CARRY_SQ, carried * carried);
                add(TIME_FACTOR, absolute(factor));
                add(OUTSIDE, counted(unit < A(REACH)));
                add(SPIKE_COUNT, spikes);
                add(NONFINITE, counted(~finite));
                const Vs counts = only<PART>(chosen(finite, size_of, Vs{}), n);
                probe[GRAD_INPUT_MAX] = chosen(counts > probe[GRAD_INPUT_MAX], counts, probe[GRAD_INPUT_MAX]);
            };
            const auto learn = [&](int p, Vs value) {
                if (MODE == LEARN || learnt[p]) stores(learnt[p] + i, t == last ? value : loads<Vs>(learnt[p] + i) + value);
            };
            const auto w = StepAt<FORM>::back(r, of_step, grad, by);
            dx = w.x;
            for (int k = 0; k < STATES; k++) by[k] = w.states[k];
            if constexpr (MODE == OBSERVE) {
                if (c.out_probe) observe(w.unit, w.jump, w.spikes);
            }
            for (int p = 0; p < CONSTANTS; p++)
                if (LEARNS[FORM][p]) learn(p, w.learnt[p]);
            // after the probe, which measures what passes the neuron
            if (grad_current) dx = dx + gets<Vs, PART>(grad_current + i, n);
            if (MODE == WRITE || out) puts<PART>(out + i, rounded(dx), n, past_caches);
            if (MODE == ACCUMULATE || (MODE >= LEARN && c.mean)) {
                const Vs dz = k * dx, centred = gets<Vs, PART>(x + i, n) - loads<Vs>(means + i);
                stores(sum_dz + i, loads<Vs>(sum_dz + i) + dz);
                stores(sum_dz_x + i, loads<Vs>(sum_dz_x + i) + dz * centred);
                if (dy) puts<PART>(dy + i, rounded(loads<Vs>(scales + i) * dz + (loads<Vs>(tilts + i) * centred + loads<Vs>(offsets + i))), n, past_caches);
                if (MODE == OBSERVE && c.out_step_gain)
                    by_step_gain += only<PART>(dx * (centred * loads<Vs>(rstds + i) * loads<Vs>(affines + i) + loads<Vs>(biases + i)), n);
            }
            if (t || s.wanted)
                for (int k = 0; k < STATES; k++) stores(by_of + k * size + i, by[k]);
        });
        if constexpr (MODE == OBSERVE) {
            if (c.out_step_gain) kept.sums->at(kept.chunk, Sums::STEP_GAIN)[t] += total(by_step_gain);
            if (!c.out_probe) continue;
            double *fields = kept.sums->at(kept.chunk, Sums::PROBE) + t * PROBE_FIELDS;
            for (int p = 0; p < PROBE_FIELDS; p++)
                if (p != GRAD_INPUT_MAX) fields[p] += total(probe[p]);
            for (int l = 0; l < WIDE; l++) fields[GRAD_INPUT_MAX] = std::max(fields[GRAD_INPUT_MAX], double(((A *)&probe[GRAD_INPUT_MAX])[l]));
        }
    }
}

template <int MODE>
void back_mode(const Block &b, const Forth &replay, const Back &s, Kept &kept) {
    with_form(int(b.c.form), [&](auto number) {
        constexpr int FORM = decltype(number)::value;
        // of a whole kind, what learns is compiled once
        if constexpr (MODE == OBSERVE) back_block<FORM, MODE, false>(b, replay, s, kept);
        else if constexpr (LEARNING[FORM] ? MODE == LEARN && !WHOLE : MODE < LEARN)
            with_one<FORM>(b, [&](auto one) { back_block<FORM, MODE, decltype(one)::value>(b, replay, s, kept); });
    });
}

void back(const Block &b, const Forth &replay, const Back &s, Kept &kept, int mode) {
    switch (mode) {
        case WRITE: return back_mode<WRITE>(b, replay, s, kept);
        case ACCUMULATE: return back_mode<ACCUMULATE>(b, replay, s, kept);
        case LEARN: return back_mode<LEARN>(b, replay, s, kept);
        default: return back_mode<OBSERVE>(b, replay, s, kept);
    }
}

// One block: forth to replay its window, back, and what its sums are worth.
void walk_block(const Block &b, const Place &at, Kept &kept, int size, int mode, bool past) {
    const Call &c = b.c;
    Forth replay = forth_of(c, at, size, kept.states.data());
    replay.kept = kept.of.data();
    replay.stop--, replay.wanted = true;
    forth<false>(b, replay);
    if (c.grad_states) std::fill(kept.by.begin(), kept.by.end(), A(0));  // of lanes past a ragged end, too
    for (int k = 0; k < STATES; k++)
        if (const A *grads = state_at(c, c.grad_states, k, at.start))
            std::copy_n(grads, at.n, kept.by.begin() + k * size);
    // Aligned blocks share their channels: a few of them add up in float before they join the channel's sum.
    if (c.mean && (!b.aligned || at.number % 16 == 0))
        for (auto *sum : {&kept.sum_dz, &kept.sum_dz_x}) std::fill(sum->begin(), sum->end(), A(0));
    back(b, replay, Back(c, at, size, past), kept, mode);
    leave_states(c, kept.by, at, size, c.out_states);
    if (c.out_sums && (!b.aligned || at.number % 16 == 15 || at.last)) {
        const int lanes = b.aligned ? b.size : at.n;
        double *by_channel = kept.sums->at(at.chunk, Sums::NORM);
        gather(c, b.channel, at.start, lanes, kept.sum_dz.data(), by_channel);
        gather(c, b.channel, at.start, lanes, kept.sum_dz_x.data(), by_channel + c.channels);
    }
    for (int p = 0; p < CONSTANTS; p++) {
        if (kept.learnt[p].empty()) continue;
        double *row = kept.sums->at(at.chunk, Sums::LEARNT) + c.constants[p].row * c.row_size;
        gather(c, c.row_size > 1 ? b.channel : 0, at.start, at.n, kept.learnt[p].data(), row);
    }
}

void walk_back(const Call &c) {
    const Cut cut(c, KEEPS[c.form]);
    const Norm norm(c);
    const Sums sums(c, cut.chunks);
    const bool learns = LEARNING[c.form];
    const bool rare = c.out_probe || c.out_step_gain || c.grad_trace || (learns && (WHOLE || !c.out_constants));
    const int mode = rare ? OBSERVE : learns ? LEARN : c.mean ? ACCUMULATE : WRITE;
    const bool past = (!c.out_dx || streams(c, c.out_dx)) && (!c.out_dy || streams(c, c.out_dy));
    visit_blocks(c, norm, cut, [&](const Block &b) {
        return [&, kept = Kept(c, cut.padded())](const Place &at) mutable {
            kept.sums = &sums, kept.chunk = at.chunk;
            walk_block(b, at, kept, cut.padded(), mode, past);
        };
    });
    sums.join();
    if (c.out_sums)  // dz * xhat is dz * (x - mean) * rstd
        for (int64_t k = 0; k < c.channels; k++) sums.rows[c.channels + k] *= double(norm.of[RSTD][k]);
    sums.write(Sums::NORM, (A *)c.out_sums);
    sums.write(Sums::LEARNT, (A *)c.out_constants);
    sums.write(Sums::STEP_GAIN, (A *)c.out_step_gain);
    sums.write(Sums::PROBE, c.out_probe);
}

// Second pass of batch norm where dL/dx is stored: dy = scale * dz + (slope * (x - mean) + offset). dy may be dL/dx.
void norm_block(const Block &b, const Back &s, int64_t steps) {
    const A *means = b.of[MEAN].data(), *scales = b.of[SCALE].data(), *tilts = b.of[SLOPE].data(), *offsets = b.of[OFFSET].data();
    for (int64_t t = 0; t < steps; t++) {
        const int64_t next = later(t, steps, s.stride, s.size);
        const A k = s.step_gain ? s.step_gain[t] : A(1);
        const T *x = s.x + t * s.stride, *grad = s.grad_s + t * s.stride;
        T *dy = s.dy + t * s.stride;
        const bool past = s.past;
        vectors(s.n, [&](auto part, int i, int m) {
            constexpr bool PART = decltype(part)::value;
            prefetch(x + next + i, LANES);
            prefetch(grad + next + i, LANES);
            if (!past && dy != grad) prefetch_for_writing(dy + next + i);
            const V centred = get<PART>(x + i, m) - load(means + i), dz = k * get<PART>(grad + i, m);
            put<PART>(dy + i, rounded(load(scales + i) * dz + (load(tilts + i) * centred + load(offsets + i))), m, past);
        });
    }
}

void norm_backward(const Call &c) {
    const bool past = streams(c, c.out_dy);
    const Cut cut(c);
    visit_blocks(c, Norm(c), cut, [&](const Block &b) {
        return [&](const Place &at) { norm_block(b, Back(c, at, b.size, past), c.steps); };
    });
}

// The walk back, and through the statistics of a batch the second pass, from dL/dx in the place of dy where nobody wants it.
void backward(const Call &c) {
    if (!c.out_dy || c.count == 0 || c.sums) return walk_back(c);
    Call first = c, second = c;
    first.out_dx = c.out_dx ? c.out_dx : c.out_dy;
    first.out_dy = nullptr;
    walk_back(first);
    second.grad_spikes = first.out_dx;
    second.sums = c.out_sums;
    second.out_step_gain = nullptr;
    norm_backward(second);
}

}  // namespace
