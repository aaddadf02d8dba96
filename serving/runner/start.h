// The start of the program. It is written out because the C library of the target is not there when it is compiled:
// the runner is linked against stubs that only name dlopen, dlsym, dlerror and the function below (build.py).

#pragma once

#include <stddef.h>

namespace qexport {
int run_all(int count, char** words);
[[noreturn]] void leave(int code);
}  // namespace qexport

static int qexport_main(int count, char** words, char**) { qexport::leave(qexport::run_all(count, words)); }

extern "C" {
#if defined(__ANDROID__)
// Bionic: the arguments on the stack, a hook, main, and the tables of constructors, of which there are none.
struct Structors {
  void* tables[3];
  size_t counts[3];
};
[[noreturn]] void __libc_init(void* stack, void (*)(void), int (*)(int, char**, char**), const Structors*);
#else
// glibc and musl.
int __libc_start_main(
    int (*)(int, char**, char**), int count, char** words, void (*)(void), void (*)(void), void (*)(void), void* stack);
#endif

__attribute__((visibility("default"), used)) [[noreturn]] void qexport_start(long* stack) {
#if defined(__ANDROID__)
  static const Structors none = {};
  __libc_init(stack, nullptr, qexport_main, &none);
#else
  char** words = reinterpret_cast<char**>(stack + 1);
  __libc_start_main(qexport_main, static_cast<int>(stack[0]), words, nullptr, nullptr, nullptr, stack);
  qexport::leave(1);
#endif
}
}

#if defined(__x86_64__)
__asm__(
    ".globl _start\n"
    "_start:\n"
    "  xor %ebp, %ebp\n"
    "  mov %rsp, %rdi\n"
    "  and $-16, %rsp\n"
    "  call qexport_start\n");
#elif defined(__aarch64__)
__asm__(
    ".globl _start\n"
    "_start:\n"
    "  mov x29, #0\n"
    "  mov x30, #0\n"
    "  mov x0, sp\n"
    "  bl qexport_start\n");
#endif
