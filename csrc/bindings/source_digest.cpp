// A file of its own, because it is compiled anew after every change of any source.
#include "source_digest.h"

namespace metagan {

const char* source_digest() { return METAGAN_SOURCE_DIGEST; }

}  // namespace metagan
