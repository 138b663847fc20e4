// The part of DLPack 1.x (https://dmlc.github.io/dlpack) that is needed to read a tensor of PyTorch from C: a table of
// functions that its class carries in a capsule. A binary interface, so nothing of PyTorch is compiled against.
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
    int64_t *shape, *strides;  // the producer's; strides count elements
    uint64_t byte_offset;
};

struct ExchangeApi {
    uint32_t major_version, minor_version;
    ExchangeApi* previous;
    void *allocate, *export_managed, *import_managed;  // not used here
    int (*read)(void* python_object, Tensor* out);     // 0, or -1 with a Python exception; null where there is none
    void* current_stream;                              // not used here
};

}  // namespace metagan::dlpack
