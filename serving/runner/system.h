// What the runner asks of Linux: system calls, text, files, facts of the machine. Nothing of the C library but dlopen.

#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {
void* dlopen(const char* path, int how);
void* dlsym(void* library, const char* name);
char* dlerror(void);
}

namespace qexport {

// Exit codes; docs/targets-devices.md lists them, and runner/client.py turns them into errors.
enum Exit {
  USAGE = 2,
  NO_RUNTIME = 20,
  WRONG_ARCHITECTURE = 21,
  OLD_RUNTIME = 22,
  NO_KERNELS = 23,
  NO_ISA = 24,
  BAD_MODEL = 25,
  BAD_INPUT = 26,
  RUN_FAILED = 27,
  DISK_FULL = 28,
  OUTPUT_CLOSED = 29,
  NO_MEMORY = 30
};

constexpr int RTLD_NOW_LOCAL = 2;  // glibc, musl and bionic on 64 bits
constexpr int EM_X86_64 = 62, EM_AARCH64 = 183, EM_386 = 3, EM_ARM = 40, EM_RISCV = 243;
constexpr long ENOSPC_CODE = 28, EINTR_CODE = 4, EDQUOT_CODE = 122, HERE = -100;

#if defined(__x86_64__)
constexpr int OWN_MACHINE = EM_X86_64;
enum Call : long { READ = 0, WRITE = 1, CLOSE = 3, MMAP = 9, MUNMAP = 11, SIGACTION = 13, CLOCK = 228, EXIT = 231, OPENAT = 257 };
inline long system_call6(long call, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall" : "=a"(result) : "a"(call), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
  return result;
}
#elif defined(__aarch64__)
constexpr int OWN_MACHINE = EM_AARCH64;
enum Call : long { OPENAT = 56, CLOSE = 57, READ = 63, WRITE = 64, EXIT = 94, CLOCK = 113, SIGACTION = 134, MUNMAP = 215, MMAP = 222 };
inline long system_call6(long call, long a, long b, long c, long d, long e, long f) {
  register long x8 __asm__("x8") = call;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
}
#else
#error "the runner is written for x86-64 and arm64"
#endif

inline long system_call(long call, long a, long b, long c, long d) { return system_call6(call, a, b, c, d, 0, 0); }
inline long address(const void* pointer) { return reinterpret_cast<long>(pointer); }

[[noreturn]] inline void leave(int code) {
  for (;;) system_call(EXIT, code, 0, 0, 0);
}

// A write to a pipe that nobody reads shall fail, not end the program without a word.
inline void ignore_broken_pipes() {
  constexpr long SIGPIPE_NUMBER = 13, MASK_BYTES = 8;
  const unsigned long ignore[4] = {1, 0, 0, 0};  // the kernel's struct: handler SIG_IGN, flags, restorer, mask
  system_call(SIGACTION, SIGPIPE_NUMBER, address(ignore), 0, MASK_BYTES);
}

inline size_t text_length(const char* text) {
  size_t n = 0;
  while (text[n]) ++n;
  return n;
}

inline bool same(const char* a, const char* b) {
  while (*a && *a == *b) ++a, ++b;
  return *a == *b;
}

inline bool starts(const char* text, const char* with) {
  while (*with && *text == *with) ++text, ++with;
  return *with == 0;
}

// A decimal number; -1 for anything else.
inline long number(const char* text) {
  long value = 0;
  if (*text == 0) return -1;
  for (; *text; ++text) {
    if (*text < '0' || *text > '9' || value > 1000000000) return -1;
    value = value * 10 + (*text - '0');
  }
  return value;
}

inline long write_all(long file, const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes) {
    const long n = system_call(WRITE, file, address(at), static_cast<long>(bytes), 0);
    if (n == -EINTR_CODE) continue;
    if (n < 0) return n;
    at += n;
    bytes -= static_cast<size_t>(n);
  }
  return 0;
}

inline void write_text(long file, const char* text) { write_all(file, text, text_length(text)); }

// One sentence on standard error, in one line, and the end of the program.
template <class... Parts>
[[noreturn]] void fail(int code, Parts... parts) {
  static char line[2048];
  size_t n = 0;
  const char* all[] = {"qexport-runner: ", parts..., "\n"};
  for (const char* part : all)
    for (; part && *part && n < sizeof line - 2; ++part) line[n++] = *part == '\n' && part[1] ? ' ' : *part;
  if (line[n - 1] != '\n') line[n++] = '\n';
  write_all(2, line, n);
  leave(code);
}

inline const char* machine_name(int machine) {
  switch (machine) {
    case EM_X86_64: return "x86_64";
    case EM_AARCH64: return "aarch64";
    case EM_386: return "32-bit x86";
    case EM_ARM: return "32-bit ARM";
    case EM_RISCV: return "RISC-V";
    default: return "another processor";
  }
}

inline long open_file(const char* path, bool to_write) {
  constexpr long CLOEXEC = 02000000, CREATE = 01 | 0100 | 01000;  // write only, create, truncate
  return system_call(OPENAT, HERE, address(path), CLOEXEC | (to_write ? CREATE : 0), 0644);
}
inline void close_file(long file) { system_call(CLOSE, file, 0, 0, 0); }
inline long read_some(long file, void* into, size_t bytes) {
  for (;;) {
    const long n = system_call(READ, file, address(into), static_cast<long>(bytes), 0);
    if (n != -EINTR_CODE) return n;
  }
}

inline double milliseconds() {
  int64_t time[2] = {0, 0};
  system_call(CLOCK, 1, address(time), 0, 0);  // CLOCK_MONOTONIC
  return static_cast<double>(time[0]) * 1e3 + static_cast<double>(time[1]) * 1e-6;
}

// Memory that grows and never shrinks.
struct Buffer {
  char* memory = nullptr;
  size_t room = 0;

  void need(size_t bytes) {
    if (bytes <= room && memory) return;
    if (memory) system_call(MUNMAP, address(memory), static_cast<long>(room), 0, 0);
    room = (bytes + 0xffff) & ~static_cast<size_t>(0xffff);
    if (room == 0) room = 0x10000;
    const long made = system_call6(MMAP, 0, static_cast<long>(room), 3, 0x22, -1, 0);  // read, write; private, anonymous
    if (made < 0 && made > -4096) fail(NO_MEMORY, "no memory left for a tensor");
    memory = reinterpret_cast<char*>(made);
  }
};

struct Input {
  long file = 0;

  // False where the stream ends first.
  bool take(void* into, size_t bytes) {
    char* at = static_cast<char*>(into);
    while (bytes) {
      const long n = read_some(file, at, bytes < (1u << 30) ? bytes : 1u << 30);
      if (n <= 0) return false;
      at += n;
      bytes -= static_cast<size_t>(n);
    }
    return true;
  }
};

struct Output {
  long file = 1;
  size_t used = 0;
  char memory[1 << 16];

  void put(const void* data, size_t bytes) {
    if (bytes > sizeof memory - used) flush();
    if (bytes > sizeof memory) return send(data, bytes);
    for (size_t i = 0; i < bytes; ++i) memory[used++] = static_cast<const char*>(data)[i];
  }

  void flush() {
    send(memory, used);
    used = 0;
  }

  void send(const void* data, size_t bytes) {
    const long problem = write_all(file, data, bytes);
    if (problem == -ENOSPC_CODE || problem == -EDQUOT_CODE) fail(DISK_FULL, "no space left for the output");
    if (problem) fail(OUTPUT_CLOSED, "the output cannot be written: its reader has gone");
  }
};

// A growing line of JSON; what no longer fits is left out.
struct Text {
  char memory[1 << 15];
  size_t used = 0;

  void clear() { used = 0; }
  const char* data() const { return memory; }
  size_t size() const { return used; }
  Text& byte(char value) {
    if (used < sizeof memory) memory[used++] = value;
    return *this;
  }
  Text& add(const char* text) {
    while (*text) byte(*text++);
    return *this;
  }
  Text& quoted(const char* text) {
    byte('"');
    for (; *text; ++text) {
      if (*text == '"' || *text == '\\') byte('\\');
      byte(static_cast<unsigned char>(*text) < 32 ? ' ' : *text);
    }
    return byte('"');
  }
  Text& integer(long value) {
    char digits[24];
    int n = 0;
    if (value < 0) byte('-');
    unsigned long rest = value < 0 ? 0ul - static_cast<unsigned long>(value) : static_cast<unsigned long>(value);
    do digits[n++] = static_cast<char>('0' + rest % 10);
    while (rest /= 10);
    while (n) byte(digits[--n]);
    return *this;
  }
  Text& decimal(double value) {  // three digits after the point
    const long thousandths = static_cast<long>(value * 1000 + 0.5);
    integer(thousandths / 1000).byte('.');
    return byte(static_cast<char>('0' + thousandths / 100 % 10)).byte(static_cast<char>('0' + thousandths / 10 % 10))
        .byte(static_cast<char>('0' + thousandths % 10));
  }
};

// The text of a small file of the system; "" where it cannot be read.
inline const char* read_text(const char* path) {
  static char text[1 << 16];
  size_t used = 0;
  const long file = open_file(path, false);
  if (file >= 0) {
    long n;
    while (used < sizeof text - 1 && (n = read_some(file, text + used, sizeof text - 1 - used)) > 0) used += static_cast<size_t>(n);
    close_file(file);
  }
  text[used] = 0;
  return text;
}

// The value of "name : value" in a file of such lines, cut at the end of the line; null where it is absent.
inline const char* field(const char* path, const char* name) {
  static char value[256];
  for (const char* line = read_text(path); *line;) {
    if (starts(line, name)) {
      const char* at = line + text_length(name);
      while (*at == ' ' || *at == '\t' || *at == ':') ++at;
      size_t n = 0;
      while (*at && *at != '\n' && n < sizeof value - 1) value[n++] = *at++;
      value[n] = 0;
      return value;
    }
    while (*line && *line != '\n') ++line;
    if (*line) ++line;
  }
  return nullptr;
}

inline const char* path_with(const char* before, int index, const char* after) {
  static char path[128];
  size_t n = 0;
  for (; *before; ++before) path[n++] = *before;
  if (index >= 10) path[n++] = static_cast<char>('0' + index / 10 % 10);
  path[n++] = static_cast<char>('0' + index % 10);
  for (; *after; ++after) path[n++] = *after;
  path[n] = 0;
  return path;
}

// The number at the start of a text; -1 for none.
inline long leading_number(const char* text) {
  long value = -1;
  for (; *text >= '0' && *text <= '9' && value < 100000000000; ++text) value = (value < 0 ? 0 : value) * 10 + (*text - '0');
  return value;
}

// The processor, its clock and its temperature, and the memory used so far, as far as the system tells.
inline void add_machine(Text& text) {
  constexpr const char* CPUINFO = "/proc/cpuinfo";
  const char* cpu = field(CPUINFO, "model name");
  if (cpu == nullptr) cpu = field(CPUINFO, "Hardware");
  if (cpu != nullptr) text.add(", \"cpu\": ").quoted(cpu);
  if (const char* part = field(CPUINFO, "CPU part")) text.add(", \"cpu_part\": ").quoted(part);
  if (const char* flags = field(CPUINFO, "Features")) text.add(", \"features\": ").quoted(flags);
  if (const char* peak = field("/proc/self/status", "VmHWM"))
    text.add(", \"peak_bytes\": ").integer(1024 * leading_number(peak));
  long slowest = -1, fastest = -1, limit = -1;
  for (int i = 0; i < 64; ++i) {
    const long now = leading_number(read_text(path_with("/sys/devices/system/cpu/cpu", i, "/cpufreq/scaling_cur_freq")));
    if (now < 0) continue;
    const long most = leading_number(read_text(path_with("/sys/devices/system/cpu/cpu", i, "/cpufreq/cpuinfo_max_freq")));
    if (slowest < 0 || now < slowest) slowest = now;
    if (now > fastest) fastest = now;
    if (most > limit) limit = most;
  }
  if (fastest >= 0) {
    text.add(", \"lowest_khz\": ").integer(slowest).add(", \"highest_khz\": ").integer(fastest);
    if (limit >= 0) text.add(", \"max_khz\": ").integer(limit);
  }
  bool first = true;
  for (int i = 0; i < 64; ++i) {
    const long heat = leading_number(read_text(path_with("/sys/class/thermal/thermal_zone", i, "/temp")));
    if (heat <= 0) continue;
    text.add(first ? ", \"celsius\": {" : ", ");
    first = false;
    char name[64];
    const char* kind = read_text(path_with("/sys/class/thermal/thermal_zone", i, "/type"));
    size_t n = 0;
    for (; kind[n] && kind[n] != '\n' && n < sizeof name - 1; ++n) name[n] = kind[n];
    name[n] = 0;
    text.quoted(path_with(n ? name : "zone", i, "")).add(": ").decimal(static_cast<double>(heat) / 1000);
  }
  if (!first) text.add("}");
}

}  // namespace qexport
