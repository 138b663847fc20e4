// Fingerprint of the sources of this build.
#pragma once

namespace metagan {

// SHA-256 of the sources that the extension was built from, as metagan_fast/_source_tree.py computes it.
const char* source_digest();

}  // namespace metagan
