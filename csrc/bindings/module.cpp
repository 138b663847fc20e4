// The Python module _core: instruction sets and profiling here, the rest in the other files of this folder.
// metagan_fast/_core.pyi documents all arguments.
#include "bindings.h"

#include <cerrno>
#include <cstdlib>
#include <string>
#include <system_error>

#include "cpu/runtime/folder_listing.h"
#include "cpu/runtime/peak.h"
#include "cpu/runtime/profile.h"
#include "cpu/simd/isa.h"
#include "source_digest.h"

namespace metagan {
namespace {

py::list available_isas() {
    py::list names;
    for (const Isa isa : kIsas)
        if (is_available(isa)) names.append(name(isa));
    return names;
}

void set_isa(const std::string& wanted) {
    std::string available;
    for (const Isa isa : kIsas) {
        if (!is_available(isa)) continue;
        if (wanted == name(isa)) return set_current_isa(isa);
        available += std::string(available.empty() ? "" : ", ") + name(isa);
    }
    throw py::value_error("instruction set must be one that this processor has (" + available + "), got '" + wanted +
                          "'");
}

py::dict build() {
    py::dict facts;
#ifdef __clang__
    facts["clang"] = __clang_version__;
#else
    facts["gcc"] = __VERSION__;
#endif
    facts["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(
        PYBIND11_VERSION_MINOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_PATCH);
    facts["python"] = PY_VERSION;
#ifdef METAGAN_WITH_CUDA
    facts["cuda"] = "kernels";
#endif
    return facts;
}

py::bytes list_folder(const std::string& path) {
    std::string listing;
    try {
        const py::gil_scoped_release release;
        listing = folder_listing(path);
    } catch (const std::system_error& error) {
        errno = error.code().value();
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
        throw py::error_already_set();
    }
    return py::bytes(listing);
}

}  // namespace
}  // namespace metagan

PYBIND11_MODULE(_core, module) {
    using namespace metagan;

    module.attr("SOURCE_DIGEST") = source_digest();
    module.attr("BUILD") = build();
    module.def("available_isas", &available_isas);
    module.def("isa", [] { return name(current_isa()); });
    module.def("set_isa", &set_isa);
    module.def("folder_listing", &list_folder);
    module.def("set_profiling", &set_profiling);
    module.def("profile", [] {
        constexpr const char* kNames[kWorks] = {"other",         "multiply",   "weight_gradient", "pack",
                                                "normalization", "activation", "rearrange",       "update"};
        py::dict seconds;
        for (int work = 0; work < kWorks; ++work) seconds[kNames[work]] = profiled_seconds(static_cast<Work>(work));
        return seconds;
    });
    module.def(
        "multiply_add_rate",
        [](int threads, double seconds) {
            if (threads < 1 || !(seconds > 0 && seconds <= 60))
                throw py::value_error("expected at least 1 thread and above 0 to 60 seconds");
            return multiply_add_rate(threads, seconds);
        },
        py::call_guard<py::gil_scoped_release>());
    if (const char* wanted = std::getenv("METAGAN_FAST_ISA"); wanted && *wanted) {
        try {
            set_isa(wanted);
        } catch (const py::value_error& error) {
            throw py::import_error(std::string("METAGAN_FAST_ISA: ") + error.what());
        }
    }

    define_updates(module);
    define_optimizers(module);
    define_engine(module);
}
