#pragma once

namespace metagan {

// SHA-256 of the sources that this was built from, as metagan_fast/_source_tree.py takes it and finds it in the file.
const char* source_digest();

}  // namespace metagan
