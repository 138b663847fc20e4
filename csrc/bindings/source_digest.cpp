// A separate file, because it is recompiled whenever any source changes.
#include "source_digest.h"

namespace metagan {

const char* source_digest() { return METAGAN_SOURCE_DIGEST; }

}  // namespace metagan
