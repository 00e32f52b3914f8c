/* A plugin of qemu's user-mode emulator for Arm64 that counts the instructions of marked regions by class.
 *
 * The emulated program marks a region by a system call that changes nothing: getpriority(MARK, 0) begins one and
 * getpriority(MARK, 1) ends it. For each region one line of JSON is written to stdout: {"instructions": {class: count}}.
 * Every instruction is in exactly one class, so their sum is the total. One thread only: counters are not atomic.
 *
 * Debian ships no header for plugins; the few functions used are declared here. They are those of version 1 of qemu's
 * plugin API; QEMU 9 asks for a later one. classify() needs nothing of qemu, and is tested against an assembler. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))

typedef uint64_t Plugin;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *instruction);
extern void qemu_plugin_register_vcpu_tb_trans_cb(Plugin id, void (*translated)(Plugin, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, int add, void *to, uint64_t value);
extern void qemu_plugin_register_vcpu_syscall_cb(
    Plugin id, void (*called)(Plugin, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                              uint64_t, uint64_t));

PUBLIC int qemu_plugin_version = 1;

enum { MARK = 0x4546, GETPRIORITY = 141 };
enum Class {
  BRANCH, LOAD, STORE, INTEGER, VECTOR_LOAD, VECTOR_STORE, DOT_PRODUCT, INT8_MATRIX, MULTIPLY_ADD, VECTOR_OTHER, OTHER,
  CLASSES
};
static const char *const NAMES[CLASSES] = {
    "branch", "load", "store", "integer", "vector_load", "vector_store", "dot_product", "int8_matrix", "multiply_add",
    "vector_other", "other"};

static uint64_t counts[CLASSES], begun[CLASSES];

/* -- what an instruction is: Arm Architecture Reference Manual for A-profile, "A64 instruction set encoding" */

static bool is(uint32_t word, uint32_t mask, uint32_t value) { return (word & mask) == value; }

static enum Class of_memory(uint32_t word) {
  bool vector = word >> 26 & 1, load = word >> 22 & 1;
  if (is(word, 0xbe000000, 0x0c000000)) vector = true;             /* LD1-LD4, ST1-ST4 */
  else if (is(word, 0x3b000000, 0x18000000)) load = true;          /* a constant beside the code */
  else if (is(word, 0x3b200c00, 0x38200000)) load = true;          /* atomic: it reads and writes */
  else if (is(word, 0xff200400, 0xf8200400)) load = true;          /* through a signed pointer */
  else if (is(word, 0x3a000000, 0x38000000) || is(word, 0x3f200000, 0x19000000))
    load = vector ? load : (word >> 22 & 3) != 0;                  /* one register; without V, 2 and 3 extend the sign */
  if (vector) return load ? VECTOR_LOAD : VECTOR_STORE;
  return load ? LOAD : STORE;
}

static enum Class of_vector(uint32_t word) {
  if (is(word, 0x9fe0fc00, 0x0e809400) || is(word, 0x9fc0f400, 0x0f80e000)   /* SDOT, UDOT */
      || is(word, 0xbfe0fc00, 0x0e809c00) || is(word, 0xbf40f400, 0x0f00f000)) /* USDOT, SUDOT */
    return DOT_PRODUCT;
  if (is(word, 0xdfe0fc00, 0x4e80a400) || is(word, 0xffe0fc00, 0x4e80ac00)) /* SMMLA, UMMLA, USMMLA */
    return INT8_MATRIX;
  if (is(word, 0xbf20fc00, 0x0e20cc00) || is(word, 0xbf60fc00, 0x0e400c00)    /* FMLA, FMLS; of float16 */
      || is(word, 0xaf80b400, 0x0f801000) || is(word, 0xafc0b400, 0x0f001000) /* by one element */
      || is(word, 0xff000000, 0x1f000000))                                    /* FMADD and its like */
    return MULTIPLY_ADD;
  return VECTOR_OTHER;
}

PUBLIC int classify(uint32_t word) {
  uint32_t group = word >> 25 & 0xf;
  if ((group & 0xe) == 0xa) return is(word, 0xfe000000, 0xd4000000) ? OTHER : BRANCH; /* exceptions, system */
  if ((group & 0x5) == 0x4) return of_memory(word);
  if ((group & 0xe) == 0x8 || (group & 0x7) == 0x5) return INTEGER;
  if ((group & 0x7) == 0x7) return of_vector(word);
  return OTHER;
}

PUBLIC const char *name_of(int class) { return NAMES[class]; }

/* -- counting */

static void translated(Plugin id, struct qemu_plugin_tb *block) {
  uint64_t found[CLASSES] = {0};
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
    found[classify(word)]++;
  }
  for (int class = 0; class < CLASSES; class++)
    if (found[class]) qemu_plugin_register_vcpu_tb_exec_inline(block, 0, &counts[class], found[class]);
}

static void report(void) {
  char line[1000];
  int length = snprintf(line, sizeof line, "{\"instructions\": {");
  for (int class = 0; class < CLASSES; class++)
    length += snprintf(line + length, sizeof line - length, "%s\"%s\": %llu", class ? ", " : "", NAMES[class],
                       (unsigned long long)(counts[class] - begun[class]));
  length += snprintf(line + length, sizeof line - length, "}}\n");
  if (write(STDOUT_FILENO, line, length) != length) _exit(141); /* whoever asked is gone, as in efrun.c */
}

static void called(Plugin id, unsigned cpu, int64_t number, uint64_t which, uint64_t end, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  if (number != GETPRIORITY || which != MARK) return;
  if (end) report();
  else memcpy(begun, counts, sizeof counts);
}

PUBLIC int qemu_plugin_install(Plugin id, const void *about, int count, char **options) {
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}
