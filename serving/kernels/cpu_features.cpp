// Which instruction sets this processor and its system let us use, and which one is in use.

#include "isa/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

// The C library of the process, if it has one; nothing else of it is used.
#if defined(__ELF__) || defined(__APPLE__)
extern "C" char* getenv(const char*) __attribute__((weak));
#define QEXPORT_HAS_GETENV 1
#endif

namespace qexport {
namespace {

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
long system_call(long number, long a, long b, long c, long d) {
#if defined(__x86_64__)
  long result;
  register long fourth __asm__("r10") = d;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
                   : "rcx", "r11", "memory");
  return result;
#else
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
  return x0;
#endif
}
#endif

struct Features {
  bool avx2 = false, avx_vnni = false, avx512_vnni = false, amx = false;
  bool neon = false, dotprod = false, i8mm = false;
};

#if defined(__x86_64__)

uint64_t enabled_state() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

// Linux gives a process its tile registers only on request (since 5.16).
bool tiles_granted() {
#if defined(__linux__)
  constexpr long ARCH_PRCTL = 158, ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
  return system_call(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA, 0, 0) == 0;
#else
  return false;
#endif
}

Features detect() {
  Features found;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool saved = c >> 27 & 1, fma = c >> 12 & 1;
  if (!saved) return found;
  const uint64_t state = enabled_state();
  if ((state & 6) != 6) return found;  // ymm
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const uint32_t subleaves = a;
  found.avx2 = (b >> 5 & 1) && fma;
  const bool zmm = (state & 0xe6) == 0xe6;
  const bool avx512 = (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);  // F, DQ, BW, VL
  found.avx512_vnni = found.avx2 && zmm && avx512 && (c >> 11 & 1);
  const bool tiles = (state >> 17 & 3) == 3 && (d >> 24 & 1) && (d >> 25 & 1);
  found.amx = found.avx512_vnni && tiles && tiles_granted();
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found.avx_vnni = found.avx2 && (a >> 4 & 1);
  return found;
}

#elif defined(__aarch64__)

Features detect() {
  Features found;
  found.neon = true;
#if defined(__linux__)
  // /proc/self/auxv: pairs of words; AT_HWCAP = 16, AT_HWCAP2 = 26.
  constexpr long OPENAT = 56, CLOSE = 57, READ = 63, HERE = -100;
  uint64_t words[128];
  const long file = system_call(OPENAT, HERE, reinterpret_cast<long>("/proc/self/auxv"), 0, 0);
  if (file < 0) return found;
  const long bytes = system_call(READ, file, reinterpret_cast<long>(words), sizeof words, 0);
  system_call(CLOSE, file, 0, 0, 0);
  for (long i = 0; i + 1 < bytes / 8; i += 2) {
    if (words[i] == 16) found.dotprod = words[i + 1] >> 20 & 1;
    if (words[i] == 26) found.i8mm = words[i + 1] >> 13 & 1;
  }
#elif defined(__APPLE__)
  found.dotprod = true;  // every Apple processor of this architecture that runs macOS has it
#endif
  found.i8mm = found.i8mm && found.dotprod;
  return found;
}

#else
Features detect() { return {}; }
#endif

const Features& features() {
  static Features found;
  static bool done = false;  // a second detection at the same time finds the same
  if (!done) {
    found = detect();
    done = true;
  }
  return found;
}

struct Choice {
  const Isa* isa;
  bool Features::*needed;  // null: runs anywhere
};

// Best first.
const Choice CHOICES[] = {
#if defined(__x86_64__)
    {&amx::ISA, &Features::amx},
    {&avx512_vnni::ISA, &Features::avx512_vnni},
    {&avx_vnni::ISA, &Features::avx_vnni},
    {&avx2::ISA, &Features::avx2},
#elif defined(__aarch64__)
    {&i8mm::ISA, &Features::i8mm},
    {&dotprod::ISA, &Features::dotprod},
    {&neon::ISA, &Features::neon},
#endif
    {&scalar::ISA, nullptr},
};

bool runs(const Choice& choice) {
#if defined(QEXPORT_EMULATED)  // a build of the tests, where every instruction set is written out in plain C++
  return true;
#endif
  return choice.needed == nullptr || features().*choice.needed;
}

const Isa* chosen = nullptr;

}  // namespace

bool same_text(const char* a, const char* b) {
  while (*a && *a == *b) ++a, ++b;
  return *a == *b;
}

const Isa* isa_by_name(const char* name) {
  for (const Choice& choice : CHOICES)
    if (same_text(choice.isa->name, name)) return choice.isa;
  return nullptr;
}

bool isa_runs_here(const Isa* isa) {
  for (const Choice& choice : CHOICES)
    if (choice.isa == isa) return runs(choice);
  return false;
}

int choose_isa(const char* name) {
  if (name == nullptr || *name == 0) {
    for (const Choice& choice : CHOICES) {
      if (runs(choice)) {
        chosen = choice.isa;
        return 0;
      }
    }
  }
  // A name of another architecture is known too: this processor lacks it.
  static const char* const NAMES[] = {"scalar", "avx2", "avx-vnni", "avx512-vnni", "amx", "neon", "dotprod", "i8mm"};
  const Isa* isa = isa_by_name(name);
  if (isa == nullptr) {
    for (const char* known : NAMES)
      if (same_text(known, name)) return 2;
    return 1;
  }
  if (!isa_runs_here(isa)) return 2;
  chosen = isa;
  return 0;
}

const Isa* current_isa() {
  if (chosen == nullptr) choose_isa(nullptr);
  return chosen;
}

const char* supported_isas() {
  static char text[96];
  char built[96];
  size_t length = 0;
  for (const Choice& choice : CHOICES) {
    if (!runs(choice)) continue;
    if (length) built[length++] = ' ';
    for (const char* c = choice.isa->name; *c; ++c) built[length++] = *c;
  }
  built[length] = 0;
  for (size_t i = 0; i <= length; ++i) text[i] = built[i];
  return text;
}

const char* wanted_by_environment() {
#if defined(QEXPORT_HAS_GETENV)
  return getenv ? getenv("QEXPORT_ISA") : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace qexport
