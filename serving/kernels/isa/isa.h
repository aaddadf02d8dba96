// The tables of all instruction sets. Each is filled by a file of its own, in a namespace of its own: code of one
// instruction set can never be linked in the place of another's.

#pragma once

#include "../core.h"

namespace qexport {

namespace scalar { extern const Isa ISA; }
#if defined(__x86_64__)
namespace avx2 { extern const Isa ISA; }
namespace avx_vnni { extern const Isa ISA; }
namespace avx512_vnni { extern const Isa ISA; }
namespace amx { extern const Isa ISA; }
#elif defined(__aarch64__)
namespace neon { extern const Isa ISA; }
namespace dotprod { extern const Isa ISA; }
namespace i8mm { extern const Isa ISA; }
#endif

}  // namespace qexport
