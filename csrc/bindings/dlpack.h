// Subset of DLPack 1.x (https://dmlc.github.io/dlpack) that reads a PyTorch tensor from C: a table of functions, in a
// capsule on the tensor class. It is a binary interface, so no PyTorch headers are needed.
#pragma once

#include <cstdint>

namespace metagan::dlpack {

constexpr const char* kCapsule = "dlpack_exchange_api";
constexpr uint32_t kMajorVersion = 1;
constexpr int32_t kCpu = 1;
constexpr uint8_t kFloat = 2, kBFloat = 4;

struct Tensor {
    void* data;
    int32_t device_type, device_index;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;  // owned by the producer; strides in elements
    uint64_t byte_offset;
};

struct ExchangeApi {
    uint32_t major_version, minor_version;
    ExchangeApi* previous;
    void *allocate, *export_managed, *import_managed;  // unused
    int (*read)(void* python_object, Tensor* out);     // returns 0, or -1 with a Python exception; may be null
    void* current_stream;                              // unused
};

}  // namespace metagan::dlpack
