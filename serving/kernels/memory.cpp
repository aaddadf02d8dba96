// The four functions that compilers call by themselves. The library has no C library to take them from.
// Compiled with -fno-builtin, or the loops below would become calls of themselves.

#include <stddef.h>

#if !defined(__clang__)
#pragma GCC optimize("no-tree-loop-distribute-patterns")  // as a flag on the command line, zig refuses it
#endif

#if defined(_WIN32)
#define QEXPORT_OWN extern "C"
#else
#define QEXPORT_OWN extern "C" __attribute__((visibility("hidden")))
#endif

QEXPORT_OWN void* memcpy(void* to, const void* from, size_t bytes) {
  char* t = static_cast<char*>(to);
  const char* f = static_cast<const char*>(from);
  for (size_t i = 0; i < bytes; ++i) t[i] = f[i];
  return to;
}

QEXPORT_OWN void* memmove(void* to, const void* from, size_t bytes) {
  char* t = static_cast<char*>(to);
  const char* f = static_cast<const char*>(from);
  if (t < f)
    for (size_t i = 0; i < bytes; ++i) t[i] = f[i];
  else
    for (size_t i = bytes; i > 0; --i) t[i - 1] = f[i - 1];
  return to;
}

QEXPORT_OWN void* memset(void* to, int value, size_t bytes) {
  char* t = static_cast<char*>(to);
  for (size_t i = 0; i < bytes; ++i) t[i] = static_cast<char>(value);
  return to;
}

QEXPORT_OWN int memcmp(const void* a, const void* b, size_t bytes) {
  const unsigned char* p = static_cast<const unsigned char*>(a);
  const unsigned char* q = static_cast<const unsigned char*>(b);
  for (size_t i = 0; i < bytes; ++i)
    if (p[i] != q[i]) return p[i] < q[i] ? -1 : 1;
  return 0;
}

#if defined(_WIN32)
// A Windows library needs an entry point, and code with floats a mark that it has some.
extern "C" int __stdcall DllMainCRTStartup(void*, unsigned, void*) { return 1; }
extern "C" int _fltused = 0;

// Windows commits a stack page by page, in order: compilers call this before they take more than a page. It touches
// every page of the rax bytes below the caller's frame and changes no register.
__asm__(
    ".globl ___chkstk_ms\n"
    "___chkstk_ms:\n"
    "  push %rax\n"
    "  push %rcx\n"
    "  lea 24(%rsp), %rcx\n"  // the caller's stack pointer: two registers and the return address lie below it
    "1:\n"
    "  cmp $4096, %rax\n"
    "  jb 2f\n"
    "  sub $4096, %rcx\n"
    "  orb $0, (%rcx)\n"
    "  sub $4096, %rax\n"
    "  jmp 1b\n"
    "2:\n"
    "  sub %rax, %rcx\n"
    "  orb $0, (%rcx)\n"
    "  pop %rcx\n"
    "  pop %rax\n"
    "  ret\n");
#endif
