// A plugin of QEMU that counts executed instructions between two marks of the program, on all of its threads.
//
// The runner marks the begin and the end of each inference (option --mark) by a system call that no kernel has; at the
// end mark one line with the count goes to the file of the argument `out`. Written against version 1 of QEMU's
// plugin interface (QEMU 6 to 8; docs/devel/tcg-plugins.rst there); what is used of it is declared here.

#include <stddef.h>
#include <stdint.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_info;
enum { INLINE_ADD_U64 = 0 };

typedef void (*tb_callback)(qemu_plugin_id_t, struct qemu_plugin_tb*);
typedef void (*syscall_callback)(
    qemu_plugin_id_t, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5,
    uint64_t a6, uint64_t a7, uint64_t a8);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, tb_callback);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_callback);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb*, int operation, void* counter, uint64_t value);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);

int open(const char*, int, ...);
long write(int, const void*, size_t);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static uint64_t executed, begin;
static int out = -1;

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb* block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &executed, qemu_plugin_tb_n_insns(block));
}

static void report(uint64_t count) {
  char line[24];
  int at = sizeof line;
  line[--at] = '\n';
  do line[--at] = (char)('0' + count % 10);
  while (count /= 10);
  if (write(out, line + at, sizeof line - (size_t)at) < 0) out = -1;
}

static void called(
    qemu_plugin_id_t id, unsigned vcpu, int64_t number, uint64_t end, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5,
    uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)vcpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (number != 0x51455850) return;
  if (end) report(executed - begin);
  begin = executed;
}

__attribute__((visibility("default"))) int qemu_plugin_install(
    qemu_plugin_id_t id, const struct qemu_info* info, int count, char** arguments) {
  (void)info;
  for (int i = 0; i < count; ++i) {
    const char* word = arguments[i];
    if (word[0] == 'o' && word[1] == 'u' && word[2] == 't' && word[3] == '=') out = open(word + 4, 02001 | 0100, 0644);  // append
  }
  if (out < 0) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}
