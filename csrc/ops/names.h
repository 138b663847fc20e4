// Names of enumerators, by which they cross the binding. Each table stands next to its enum.
#pragma once

namespace metagan {

template <class Enum>
struct Named {
    const char* name;
    Enum value;
};

}  // namespace metagan
