// In place of a printed step, for the passes that have no neuron: statistics, and spikes as bits.

#pragma once

constexpr int FORMS = 1, STATES = 1, CONSTANTS = 0, KEPT = 1;
constexpr int KEEPS[FORMS] = {1}, FORTH_AS[FORMS] = {0}, REPLAY_AS[FORMS] = {0};
constexpr bool LEARNS[FORMS][CONSTANTS + 1] = {{0}}, LEARNING[FORMS] = {false}, VARIES[FORMS] = {false}, WHOLE = false, WAITS = false, CALLS = false;

struct Step0 {
    struct Constants {};
    struct Walked { V x, states[1], learnt[1], jump, unit, spikes; };

    template <class At>
    static Constants of(At) { return {}; }

    static inline V forth(const Constants &, V x, V *, V *kept) { return kept[0] = x; }
    static inline Walked back(const Constants &, const V *, V grad, const V *) {
        Walked w{};
        w.x = grad;
        return w;
    }
};

using Steps = std::tuple<Step0>;
