// Shared by the bindings, the only files of csrc that include pybind11.
#pragma once

#include <pybind11/pybind11.h>

namespace metagan {

namespace py = pybind11;

void define_updates(py::module_& module);
void define_optimizers(py::module_& module);
void define_engine(py::module_& module);

inline void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

}  // namespace metagan
