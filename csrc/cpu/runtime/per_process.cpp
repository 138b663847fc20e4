// Fork counter.
#include "per_process.h"

#include <pthread.h>

namespace metagan {
namespace {

std::atomic<int64_t> generation{0};
// Registered when the library is loaded: the lock of a lazy initialisation could itself be held during a fork.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { ++generation; });

}  // namespace

int64_t fork_generation() { return generation.load(); }

}  // namespace metagan
