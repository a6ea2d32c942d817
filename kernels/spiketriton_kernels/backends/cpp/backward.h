// The way back: the gradients of a block's neurons from the end of the window to its start, and what they leave.

#pragma once

#include "forward.h"

namespace {

// The columns of a probe's row, in the order of PROBE_FIELDS in arguments.py.
enum Probe { GRAD_SPIKE_SQ, GRAD_INPUT_SQ, GRAD_CARRY_SQ, TIME_FACTOR, OUTSIDE, SPIKE_COUNT, GRAD_INPUT_MAX, NONFINITE, PROBE_FIELDS };
constexpr double REACH = 0.01;

// Everything that one chunk sums, joined later in chunk order.
struct Sums {
    std::vector<double> norm, parameters, step_gain, probe;

    explicit Sums(const Call &c)
        : norm(c.out_sums ? 2 * c.channels : 0), parameters(c.out_parameters ? c.rows * c.parameter_size : 0),
          step_gain(c.out_step_gain ? c.steps : 0), probe(c.out_probe ? c.steps * PROBE_FIELDS : 0) {}

    void join(const Sums &more) {
        for (auto part : {&Sums::norm, &Sums::parameters, &Sums::step_gain})
            for (size_t i = 0; i < (this->*part).size(); i++) (this->*part)[i] += (more.*part)[i];
        for (size_t i = 0; i < probe.size(); i++)
            probe[i] = i % PROBE_FIELDS == GRAD_INPUT_MAX ? std::max(probe[i], more.probe[i]) : probe[i] + more.probe[i];
    }
};

// What the way back leaves besides the carried gradients.
enum Mode {
    WRITE,       // dL/dx in memory: the neuron alone
    ACCUMULATE,  // the channel sums of dz and dz * (x - mean), and in memory dL/dx or dy where asked for: batch norm
    LEARN,       // of a printed step that learns: both, and the sums of what it learns
    OBSERVE,     // everything rarer besides, with the surrogate from cache, so that this is compiled once for all shapes
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
          past(past_ && at.start % LANES == 0), given(c.grad_v_last || c.grad_m_last), wanted(c.out_v_init || c.out_m_init) {}
};

// What a thread keeps of a block on the way: states, and what of each step the way back reads; carried gradients; sums.
struct Kept {
    Array<A> states, of, start;         // of: ``kept`` of the window's steps, by kind; start: the states before the first
    Array<A> by, sum_dz, sum_dz_x;
    Array<A> unit, turn;                // of a window: phi; primitive(z) - z * phi where a width learns
    Array<A> learnt[ROWS + 1];          // sums over the steps; empty of what is a number
    Sums *sums = nullptr;

    Kept(const Call &c, int size, int mode) : states(STATES * size), start(size), by(STATES * size), sum_dz(size), sum_dz_x(size) {
        const size_t window = size_t(size) * c.steps;
        of.resize(KEPT * window);
        if (mode == OBSERVE && KIND != OWN) unit.resize(window);
        if (KIND != OWN && c.out_parameters && c.parameters[WIDTH]) turn.resize(window);
        for (int p = 0; c.out_parameters && p < c.rows; p++)
            if (KIND == OWN ? LEARNS[c.reset][p] : c.parameters[p] != nullptr) learnt[p].resize(size);
    }
};

#ifndef SPIKETRITON_STEP
// phi over a block's window, and what a width learns by.
template <int SHAPE>
void surrogates(const Block &b, const Back &s, Kept &kept) {
    const Rules<SUBTRACT, false> rules(b);
    const A *widths = b.parameters[WIDTH].data(), *inverse_widths = b.inverse_width.data();
    for (int64_t t = 0; t < b.c.steps; t++)
        for (int i = 0; i < s.n; i += LANES) {
            const int64_t here = t * s.size + i;
            const V z = load(&kept.of[here]) - rules.at(i).threshold;
            const V width = load(widths + i), unit = phi<SHAPE>(z, width, load(inverse_widths + i));
            store(&kept.unit[here], unit);
            if (kept.turn.empty()) continue;
            const V scaled = z / width;
            V turn{};
            for (int l = 0; l < LANES; l++) turn[l] = primitive(scaled[l], SHAPE);
            store(&kept.turn[here], turn - scaled * unit);
        }
}
#endif

template <bool PART>
inline V only(V v, int n) {  // the lanes that are neurons
    if constexpr (PART)
        for (int l = n; l < LANES; l++) v[l] = 0;
    return v;
}

inline double total(V v) {
    A lanes[LANES];
    std::memcpy(lanes, &v, sizeof lanes);
    return total(lanes, LANES);
}

template <int RESET, bool ATTACHED, int SHAPE, int MODE, bool ONE>
__attribute__((noinline)) void back_block(const Block &b, const Forth &replay, const Back &s, Kept &kept) {
    const Call &c = b.c;
    const int64_t last = c.steps - 1, after = later(last, c.steps, s.stride, s.size);
    const A height = A(c.numbers[HEIGHT]);
    const Rules<RESET, ONE> rules(b);
    const Values<ONE> widths(b.parameters[KIND == OWN ? 0 : WIDTH]), inverse_widths(b.inverse_width);
    const A *means = b.of[MEAN].data(), *scales = b.of[SCALE].data(), *biases = b.of[BIAS].data(), *rstds = b.of[RSTD].data(),
            *affines = b.of[AFFINE].data(), *tilts = b.of[SLOPE].data(), *offsets = b.of[OFFSET].data();
    A *by_of = kept.by.data(), *sum_dz = kept.sum_dz.data(), *sum_dz_x = kept.sum_dz_x.data();
    A *learnt[ROWS + 1];
    for (int p = 0; p < ROWS; p++) learnt[p] = kept.learnt[p].empty() ? nullptr : kept.learnt[p].data();
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
        V probe[PROBE_FIELDS] = {}, by_step_gain{};
        vectors(s.n, [&](auto part, int i, int n) {
            constexpr bool PART = decltype(part)::value;
            prefetch(gs + next + i, LANES);
            if (out && !past_caches) prefetch_for_writing(out + next + i);
            if (grad_current) prefetch(grad_current + next + i, LANES);
            const auto &r = rules.at(i);
            const V grad = get<PART>(gs + i, n);
            V dx{}, by[STATES], of_step[KEPT];
            for (int k = 0; k < STATES; k++) by[k] = t < last || s.given ? load(by_of + k * size + i) : V{};
            if (KIND == OWN && t == last) {  // forth and back at once
                prefetch(x + after + i, LANES);
                if (residual) prefetch(residual + after + i, LANES);
                V current = get<PART>(x + i, n), state[STATES];
                if (MODE != WRITE && c.mean) current = k * ((current - load(means + i)) * load(scales + i) + load(biases + i));
                if (residual) current = current + get<PART>(residual + i, n);
                for (int k = 0; k < STATES; k++) state[k] = replay.before(t, k, i);
                forth_step<RESET>(r, current, state, of_step);
            } else {
                for (int k = 0; k < KEEPS[RESET]; k++) of_step[k] = load(of + k * window + i);
            }
            if (MODE == OBSERVE && grad_trace) by[0] = by[0] + get<PART>(grad_trace + i, n);
            const V carried = by[0];
            const auto observe = [&](V unit, V factor, V spikes) {
                const V size_of = absolute(dx);
                const Mask finite = size_of <= std::numeric_limits<A>::max();
                const auto add = [&](Probe field, V value) { probe[field] += only<PART>(value, n); };
                add(GRAD_SPIKE_SQ, grad * grad);
                add(GRAD_INPUT_SQ, dx * dx);
                add(GRAD_CARRY_SQ, carried * carried);
                add(TIME_FACTOR, absolute(factor));
                add(OUTSIDE, counted(unit < A(REACH)));
                add(SPIKE_COUNT, spikes);
                add(NONFINITE, counted(~finite));
                const V counts = only<PART>(finite ? size_of : V{}, n);
                probe[GRAD_INPUT_MAX] = counts > probe[GRAD_INPUT_MAX] ? counts : probe[GRAD_INPUT_MAX];
            };
            const auto learn = [&](int p, V value) {
                if (MODE == LEARN || learnt[p]) store(learnt[p] + i, t == last ? value : load(learnt[p] + i) + value);
            };
            if constexpr (KIND == OWN) {
                const auto w = StepAt<RESET>::back(r, of_step, grad, by);
                dx = w.x;
                for (int k = 0; k < STATES; k++) by[k] = w.states[k];
                if constexpr (MODE == OBSERVE) {
                    if (c.out_probe) observe(w.unit, w.jump, w.spikes);
                }
                for (int p = 0; p < ROWS; p++)
                    if (LEARNS[RESET][p]) learn(p, w.learnt[p]);
            } else {
                const V h = of_step[0];
                V unit{};
                if constexpr (MODE == OBSERVE) unit = load(&kept.unit[in_window + i]);
                else unit = phi<SHAPE>(h - r.threshold, widths.at(i), inverse_widths.at(i));
                const V slope = height * unit;
                Found f = step_back<RESET, ATTACHED>(r, h, grad, slope, by[0]);
                dx = r.gain * f.h;
                V by_v = r.decay * f.h;
                V v{};  // before the step
                if ((MODE == OBSERVE && learnt[DECAY]) || KIND == DELAYED) {
                    if (t) {
                        v = load(of - size + i);
                        settle<RESET>(r, v, v);
                    } else {
                        v = replay.given ? load(&kept.start[i]) : all(replay.start[0]);
                    }
                }
                if constexpr (KIND == DELAYED) {
                    const Mask reset = v >= r.threshold;
                    if constexpr (RESET == SUBTRACT) f.threshold = f.threshold - (reset ? f.h : V{});
                    if constexpr (RESET == TO_ZERO_LEAK) by_v = reset ? V{} : by_v, v = reset ? V{} : v;
                }
                if constexpr (MODE == OBSERVE) {
                    if (c.out_probe) {
                        observe(unit, r.decay * jump_of<RESET, ATTACHED>(r, h, slope), counted(Mask(h >= r.threshold)));
                    }
                    if (c.out_parameters) {
                        learn(DECAY, f.h * (RESET == TO_RESET_LEAK ? v - r.v_reset : v));
                        learn(THRESHOLD, f.threshold);
                        if (!kept.turn.empty()) learn(WIDTH, f.spike * height * load(&kept.turn[in_window + i]));
                        if (learnt[GAIN]) {
                            V current = get<PART>(x + i, n);
                            if (c.mean) current = k * ((current - load(means + i)) * load(scales + i) + load(biases + i));
                            if (residual) current = current + get<PART>(residual + i, n);
                            learn(GAIN, f.h * current);
                        }
                    }
                }
                by[0] = by_v;
            }
            // after the probe, which measures what passes the neuron
            if (grad_current) dx = dx + get<PART>(grad_current + i, n);
            if (MODE == WRITE || out) put<PART>(out + i, rounded(dx), n, past_caches);
            if (MODE == ACCUMULATE || (MODE >= LEARN && c.mean)) {
                const V dz = k * dx, centred = get<PART>(x + i, n) - load(means + i);
                store(sum_dz + i, load(sum_dz + i) + dz);
                store(sum_dz_x + i, load(sum_dz_x + i) + dz * centred);
                if (dy) put<PART>(dy + i, rounded(load(scales + i) * dz + (load(tilts + i) * centred + load(offsets + i))), n, past_caches);
                if (MODE == OBSERVE && c.out_step_gain)
                    by_step_gain += only<PART>(dx * (centred * load(rstds + i) * load(affines + i) + load(biases + i)), n);
            }
            if (t || s.wanted)
                for (int k = 0; k < STATES; k++) store(by_of + k * size + i, by[k]);
        });
        if constexpr (MODE == OBSERVE) {
            if (c.out_step_gain) kept.sums->step_gain[t] += total(by_step_gain);
            if (!c.out_probe) continue;
            double *fields = kept.sums->probe.data() + t * PROBE_FIELDS;
            for (int p = 0; p < PROBE_FIELDS; p++)
                if (p != GRAD_INPUT_MAX) fields[p] += total(probe[p]);
            for (int l = 0; l < LANES; l++) fields[GRAD_INPUT_MAX] = std::max(fields[GRAD_INPUT_MAX], double(probe[GRAD_INPUT_MAX][l]));
        }
    }
}

template <class Go>
void with_shape(int shape, Go go) {
    if constexpr (KIND == OWN) return go(Number<RECTANGLE>{});
    if constexpr (ONLY_SHAPE >= 0) return go(Number<ONLY_SHAPE>{});
    switch (shape) {
        case FAST_SIGMOID: return go(Number<FAST_SIGMOID>{});
        case ATAN: return go(Number<ATAN>{});
        case SIGMOID: return go(Number<SIGMOID>{});
        case TRIANGLE: return go(Number<TRIANGLE>{});
        case RECTANGLE: return go(Number<RECTANGLE>{});
        default: return go(Number<GAUSSIAN>{});
    }
}

// The way the gradient takes through the reset: of LIF without what is rare, four ways serve all of them.
template <int MODE, class Go>
void with_path(const Call &c, Go go) {
    constexpr bool merged = KIND == LIF && MODE != OBSERVE && ONLY_RESET < 0;
    int reset = c.reset;
    if (merged && reset == TO_RESET_LEAK) reset = TO_ZERO_LEAK;
    if (merged && reset == SUBTRACT && c.detach_reset) reset = NO_RESET;
    with_form(reset, [&](auto number) {
        constexpr int RESET = decltype(number)::value;
        if constexpr (KIND == OWN) {
            if constexpr (MODE == OBSERVE || (LEARNING[RESET] ? MODE == LEARN && FORMS == 1 : MODE < LEARN)) go(number, std::false_type{});
        } else if constexpr (RESET == NO_RESET || KIND == DELAYED) go(number, std::false_type{});
        else if constexpr (merged && RESET == SUBTRACT) go(number, std::true_type{});
        else if constexpr (!(merged && RESET == TO_RESET_LEAK)) with(!c.detach_reset, [&](auto attached) { go(number, attached); });
    });
}

template <int MODE>
void back_mode(const Block &b, const Forth &replay, const Back &s, Kept &kept) {
    const auto go = [&](auto shape, auto one) {
        with_path<MODE>(b.c, [&](auto reset, auto attached) {
            back_block<decltype(reset)::value, decltype(attached)::value, decltype(shape)::value, MODE, decltype(one)::value>(b, replay, s, kept);
        });
    };
    if constexpr (MODE == OBSERVE) go(Number<0>{}, std::false_type{});
    else with_shape(int(b.c.numbers[SHAPE]), [&](auto shape) { with(b.one(), [&](auto one) { go(shape, one); }); });
}

void back(const Block &b, const Forth &replay, const Back &s, Kept &kept, int mode) {
    if (mode == WRITE) return back_mode<WRITE>(b, replay, s, kept);
    if (mode == ACCUMULATE) return back_mode<ACCUMULATE>(b, replay, s, kept);
    if constexpr (KIND == OWN)
        if (mode == LEARN) return back_mode<LEARN>(b, replay, s, kept);
#ifndef SPIKETRITON_STEP
    with_shape(int(b.c.numbers[SHAPE]), [&](auto shape) { surrogates<decltype(shape)::value>(b, s, kept); });
#endif
    back_mode<OBSERVE>(b, replay, s, kept);
}

// One block: forth to replay its window, back, and what its sums are worth.
void walk_block(const Block &b, const Place &at, Kept &kept, int size, int mode, bool past) {
    const Call &c = b.c;
    Forth replay = forth_of(c, at, size, kept.states.data());
    replay.kept = kept.of.data();
    if (KIND == OWN) replay.stop--, replay.wanted = true;
    if (mode == OBSERVE || KIND == DELAYED) std::copy_n(kept.states.begin(), size, kept.start.begin());
    forth<false>(b, replay);
    if (c.grad_v_last || c.grad_m_last) std::fill(kept.by.begin(), kept.by.end(), A(0));  // of lanes past a ragged end, too
    for (int k = 0; k < STATES; k++)
        if (const A *grads = state_at(c, c.grad_v_last, c.grad_m_last, k, at.start))
            std::copy_n(grads, at.n, kept.by.begin() + k * size);
    // Aligned blocks share their channels: a few of them add up in float before they join the channel's sum.
    if (c.mean && (!b.aligned || at.number % 16 == 0))
        for (auto *sum : {&kept.sum_dz, &kept.sum_dz_x}) std::fill(sum->begin(), sum->end(), A(0));
    back(b, replay, Back(c, at, size, past), kept, mode);
    leave_states(c, kept.by, at, size, c.out_v_init, c.out_m_init);
    if (c.out_sums && (!b.aligned || at.number % 16 == 15 || at.last)) {
        const int lanes = b.aligned ? b.size : at.n;
        gather(c, b.channel, at.start, lanes, kept.sum_dz.data(), kept.sums->norm.data());
        gather(c, b.channel, at.start, lanes, kept.sum_dz_x.data(), kept.sums->norm.data() + c.channels);
    }
    for (int p = 0; p < ROWS; p++) {
        if (kept.learnt[p].empty()) continue;
        double *row = kept.sums->parameters.data() + p * c.parameter_size;
        gather(c, c.parameter_size > 1 ? b.channel : 0, at.start, at.n, kept.learnt[p].data(), row);
    }
}

void walk_back(const Call &c) {
    const Cut cut(c, KIND == OWN ? KEEPS[c.reset] : 1);
    const Norm norm(c);
    std::vector<Sums> sums(cut.chunks, Sums(c));
    // of several forms, what learns is compiled once
    const bool several = KIND == OWN && FORMS > 1 && LEARNING[c.reset];
    const bool rare = c.out_probe || c.out_step_gain || c.grad_trace || several || (KIND != OWN && c.out_parameters);
    const int mode = rare ? OBSERVE : KIND == OWN && LEARNING[c.reset] ? LEARN : c.mean ? ACCUMULATE : WRITE;
    const bool past = (!c.out_dx || streams(c, c.out_dx)) && (!c.out_dy || streams(c, c.out_dy));
    visit_blocks(c, norm, cut, [&](const Block &b) {
        return [&, kept = Kept(c, cut.padded(), mode)](const Place &at) mutable {
            kept.sums = &sums[at.chunk];
            walk_block(b, at, kept, cut.padded(), mode, past);
        };
    });
    Sums joined(c);
    for (const Sums &s : sums) joined.join(s);
    for (size_t i = size_t(c.channels); i < joined.norm.size(); i++)  // dz * xhat is dz * (x - mean) * rstd
        joined.norm[i] *= double(norm.of[RSTD][i - c.channels]);
    const auto write = [](const std::vector<double> &sums, auto *out) {
        for (size_t i = 0; i < sums.size(); i++) out[i] = std::remove_reference_t<decltype(*out)>(sums[i]);
    };
    write(joined.norm, (A *)c.out_sums);
    write(joined.parameters, (A *)c.out_parameters);
    write(joined.step_gain, (A *)c.out_step_gain);
    write(joined.probe, c.out_probe);
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
