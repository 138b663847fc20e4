// Entries of a folder with their sizes and times, for the check of an image cache.
#pragma once

#include <string>

namespace metagan {

// Returns the entries of a folder sorted by name, each as name, NUL, target of a link or nothing, NUL, and four int64:
// type bits of its mode, size, times of modification and of change in ns. Links are followed; zeros: a link to nothing.
// Of a folder only the type counts. Throws std::system_error.
std::string folder_listing(const std::string& path);

}  // namespace metagan
