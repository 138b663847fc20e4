#include "trajectory.h"

namespace metagan {

Trajectory::Trajectory(const Worker& worker, NetworkState& live, const float* initial, const Sizes& sizes,
                       BumpAllocator& next)
    : worker_(worker),
      live_(live),
      initial_(initial),
      sizes_(sizes),
      starts_(next((sizes.segments() - 1) * (1 + sizes.buffers) * sizes.numel)),
      between_(next(sizes.between() * sizes.numel)),
      updates_before_(live.updates) {}

void Trajectory::keep(int64_t update) {
    const int64_t numel = sizes_.numel, of_segment = update % updates_of_segment();
    if (of_segment > 0) return worker_.copy(live_.params, numel, between_ + (of_segment - 1) * numel);
    held_ = update / updates_of_segment();
    if (held_ <= started_) return;
    started_ = held_;
    worker_.copy(live_.params, numel, start(held_));
    for (int64_t i = 0; i < sizes_.buffers; ++i)
        worker_.copy(live_.buffers[static_cast<size_t>(i)], numel, start(held_) + (1 + i) * numel);
}

const float* Trajectory::before(int64_t update) const {
    if (update == sizes_.steps * sizes_.updates) return live_.params;
    const int64_t of_segment = update - held_ * updates_of_segment();
    if (of_segment == updates_of_segment()) return start(held_ + 1);
    if (of_segment > 0) return between_ + (of_segment - 1) * sizes_.numel;
    return held_ == 0 ? initial_ : start(held_);
}

void Trajectory::rewind(int64_t first_step) {
    const int64_t segment = first_step / sizes_.segment, numel = sizes_.numel;
    worker_.copy(segment == 0 ? initial_ : start(segment), numel, live_.params);
    for (int64_t i = 0; i < sizes_.buffers; ++i) {
        float* const buffer = live_.buffers[static_cast<size_t>(i)];
        if (segment == 0)
            worker_.clear(buffer, numel);
        else
            worker_.copy(start(segment) + (1 + i) * numel, numel, buffer);
    }
    live_.updates = updates_before_ + first_step * sizes_.updates;
    live_.version = new_version();
}

}  // namespace metagan
