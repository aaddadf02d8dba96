#include "wordpiece.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  uint32_t* data;
  size_t count, room;
} codes; /* a growing array of code points, or of ids */

typedef struct {
  uint32_t first, last, value; /* value: class of `order`, place in `texts` of `split` and `lower` */
  uint32_t step;               /* of `lower` */
} range;

enum { DROP, SPACE, CJK, MARK, PUNCT, ORDER, SPLIT, LOWER, KINDS };
static const char* const NAMES[KINDS] = {"drop", "space", "cjk", "mark", "punct", "order", "split", "lower"};

struct wordpiece {
  const wordpiece_settings* settings;
  range* ranges[KINDS];
  size_t n_ranges[KINDS];
  codes texts;       /* count, code points, count, code points, ... */
  char* vocabulary;  /* the file, its line ends replaced by zeros */
  const char** slot; /* hash table: token, */
  int64_t* slot_id;  /* and its id */
  size_t n_slots;    /* a power of two */
};

static int push(codes* list, uint32_t code) {
  if (list->count == list->room) {
    size_t room = list->room ? 2 * list->room : 64;
    uint32_t* data = realloc(list->data, room * sizeof *data);
    if (data == NULL) return 0;
    list->data = data;
    list->room = room;
  }
  list->data[list->count++] = code;
  return 1;
}

/* ---- files ---- */

static char* read_file(const char* path, size_t* length) {
  FILE* file = fopen(path, "rb");
  char* text = NULL;
  long size;
  if (file == NULL) return NULL;
  if (fseek(file, 0, SEEK_END) == 0 && (size = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0 &&
      (text = malloc((size_t)size + 1)) != NULL) {
    *length = fread(text, 1, (size_t)size, file);
    text[*length] = 0;
  }
  fclose(file);
  return text;
}

static size_t hash(const char* text, size_t length) {
  uint64_t value = 1469598103934665603u; /* FNV-1a */
  for (size_t i = 0; i < length; i++) value = (value ^ (unsigned char)text[i]) * 1099511628211u;
  return (size_t)(value ^ (value >> 32));
}

static int64_t token_id(const wordpiece* self, const char* text, size_t length) {
  for (size_t at = hash(text, length);; at++) {
    const char* token = self->slot[at &= self->n_slots - 1];
    if (token == NULL) return -1;
    if (strncmp(token, text, length) == 0 && token[length] == 0) return self->slot_id[at];
  }
}

static int read_vocabulary(wordpiece* self, const char* path) {
  size_t length, lines = 1;
  int64_t id = 0;
  if ((self->vocabulary = read_file(path, &length)) == NULL) return 0;
  for (size_t i = 0; i < length; i++) lines += self->vocabulary[i] == '\n';
  for (self->n_slots = 64; self->n_slots < 2 * lines; self->n_slots *= 2) {
  }
  self->slot = calloc(self->n_slots, sizeof *self->slot);
  self->slot_id = calloc(self->n_slots, sizeof *self->slot_id);
  if (self->slot == NULL || self->slot_id == NULL) return 0;
  for (char *token = self->vocabulary, *end; (end = strchr(token, '\n')) != NULL; token = end + 1, id++) {
    size_t at = hash(token, (size_t)(end - token));
    *end = 0;
    while (self->slot[at &= self->n_slots - 1] != NULL) at++;
    self->slot[at] = token;
    self->slot_id[at] = id;
  }
  return 1;
}

static int read_line(wordpiece* self, char* line) {
  char* rest = strchr(line, ' ');
  uint32_t numbers[64];
  size_t count = 0, skip;
  int kind = 0;
  range found;
  if (line[0] == '#' || rest == NULL) return 1;
  *rest++ = 0;
  while (kind < KINDS && strcmp(line, NAMES[kind]) != 0) kind++;
  for (char* end; count < 64; rest = end) {
    uint32_t number = (uint32_t)strtoul(rest, &end, 16);
    if (end == rest) break;
    numbers[count++] = number;
  }
  skip = kind == SPLIT ? 1 : kind == LOWER ? 3 : 2;
  if (kind == KINDS || count < skip || (kind == LOWER && numbers[2] == 0)) return 0;
  found.first = numbers[0];
  found.last = kind == SPLIT ? numbers[0] : numbers[1];
  found.step = kind == LOWER ? numbers[2] : 1;
  found.value = kind == ORDER && count > 2 ? numbers[2] : (uint32_t)self->texts.count;
  if (kind == SPLIT || kind == LOWER) {
    if (!push(&self->texts, (uint32_t)(count - skip))) return 0;
    for (size_t i = skip; i < count; i++) {
      if (!push(&self->texts, numbers[i])) return 0;
    }
  }
  self->ranges[kind][self->n_ranges[kind]++] = found;
  return 1;
}

static int by_first(const void* a, const void* b) {
  uint32_t one = ((const range*)a)->first, other = ((const range*)b)->first;
  return one < other ? -1 : one > other;
}

static int read_characters(wordpiece* self, const char* path) {
  size_t length, lines = 1;
  char* text = read_file(path, &length);
  int fine = text != NULL;
  for (size_t i = 0; fine && i < length; i++) lines += text[i] == '\n';
  for (int kind = 0; fine && kind < KINDS; kind++) {
    fine = (self->ranges[kind] = calloc(lines, sizeof(range))) != NULL;
  }
  for (char *line = text, *end; fine && (end = strchr(line, '\n')) != NULL; line = end + 1) {
    *end = 0;
    fine = read_line(self, line);
  }
  for (int kind = 0; fine && kind < KINDS; kind++) {
    qsort(self->ranges[kind], self->n_ranges[kind], sizeof(range), by_first);
  }
  free(text);
  return fine;
}

wordpiece* wordpiece_open(const wordpiece_settings* settings, const char* vocab_path, const char* unicode_path) {
  wordpiece* self = calloc(1, sizeof *self);
  if (self == NULL) return NULL;
  self->settings = settings;
  if (read_vocabulary(self, vocab_path) && read_characters(self, unicode_path)) return self;
  wordpiece_close(self);
  return NULL;
}

void wordpiece_close(wordpiece* self) {
  if (self == NULL) return;
  for (int kind = 0; kind < KINDS; kind++) free(self->ranges[kind]);
  free(self->texts.data);
  free(self->vocabulary);
  free(self->slot);
  free(self->slot_id);
  free(self);
}

/* ---- characters ---- */

/* The range of one kind that holds a code point, or NULL. Runs of `lower` in steps of 2 may lie inside each other. */
static const range* find(const wordpiece* self, int kind, uint32_t code) {
  const range* ranges = self->ranges[kind];
  size_t low = 0, high = self->n_ranges[kind];
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (ranges[middle].first <= code) low = middle + 1;
    else high = middle;
  }
  for (size_t back = 0; back < 3 && low > back; back++) {
    const range* at = &ranges[low - 1 - back];
    if (code <= at->last && (code - at->first) % at->step == 0) return at;
  }
  return NULL;
}

/* One code point of UTF-8; a byte that begins none is U+FFFD. */
static uint32_t next_code(const char** at, const char* end) {
  const unsigned char* p = (const unsigned char*)*at;
  size_t left = (size_t)(end - *at), more = p[0] < 0x80 ? 0 : p[0] < 0xC2 ? 9 : p[0] < 0xE0 ? 1 : p[0] < 0xF0 ? 2 : p[0] < 0xF5 ? 3 : 9;
  uint32_t code = more == 0 ? p[0] : p[0] & (0x3Fu >> more);
  ++*at;
  if (more == 0) return code;
  if (more >= left) return 0xFFFD;
  for (size_t i = 1; i <= more; i++) {
    if ((p[i] & 0xC0) != 0x80) return 0xFFFD;
    code = code << 6 | (p[i] & 0x3F);
  }
  if ((more == 2 && code < 0x800) || (more == 3 && code < 0x10000) || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return 0xFFFD;
  *at += more;
  return code;
}

static size_t put_code(char* out, uint32_t code) {
  if (code < 0x80) return out[0] = (char)code, 1;
  if (code < 0x800) return out[0] = (char)(0xC0 | code >> 6), out[1] = (char)(0x80 | (code & 0x3F)), 2;
  if (code < 0x10000) {
    out[0] = (char)(0xE0 | code >> 12), out[1] = (char)(0x80 | (code >> 6 & 0x3F)), out[2] = (char)(0x80 | (code & 0x3F));
    return 3;
  }
  out[0] = (char)(0xF0 | code >> 18), out[1] = (char)(0x80 | (code >> 12 & 0x3F));
  out[2] = (char)(0x80 | (code >> 6 & 0x3F)), out[3] = (char)(0x80 | (code & 0x3F));
  return 4;
}

/* Canonical decomposition of one code point onto a list. */
static int decompose(const wordpiece* self, uint32_t code, codes* out) {
  const range* found;
  if (code >= 0xAC00 && code < 0xAC00 + 11172) { /* Hangul: arithmetic */
    uint32_t at = code - 0xAC00;
    return push(out, 0x1100 + at / 588) && push(out, 0x1161 + at % 588 / 28) && (at % 28 == 0 || push(out, 0x11A7 + at % 28));
  }
  if ((found = find(self, SPLIT, code)) == NULL) return push(out, code);
  for (uint32_t i = 1; i <= self->texts.data[found->value]; i++) {
    if (!push(out, self->texts.data[found->value + i])) return 0;
  }
  return 1;
}

static uint32_t order_of(const wordpiece* self, uint32_t code) {
  const range* found = code < 0x300 ? NULL : find(self, ORDER, code);
  return found == NULL ? 0 : found->value;
}

static void sort_marks(const wordpiece* self, codes* list) {
  for (size_t i = 1; i < list->count; i++) {
    uint32_t code = list->data[i], order = order_of(self, code);
    size_t j = i;
    for (; order != 0 && j > 0 && order_of(self, list->data[j - 1]) > order; j--) list->data[j] = list->data[j - 1];
    list->data[j] = code;
  }
}

/* The text as BERT reads it: cleaned, Chinese characters apart, accents off, lower case. */
static int normalize(const wordpiece* self, const char* text, const char* end, codes* out) {
  const wordpiece_settings* how = self->settings;
  codes list = {NULL, 0, 0};
  int fine = 1;
  while (fine && text < end) {
    uint32_t code = next_code(&text, end);
    int alone = how->chinese_chars && code >= 0x3400 && find(self, CJK, code) != NULL;
    if (how->clean_text && find(self, DROP, code) != NULL) continue;
    if (how->clean_text && find(self, SPACE, code) != NULL) code = ' ';
    if (alone) fine = push(&list, ' ');
    fine = fine && (how->strip_accents ? decompose(self, code, &list) : push(&list, code));
    if (alone) fine = fine && push(&list, ' ');
  }
  if (how->strip_accents) sort_marks(self, &list);
  for (size_t i = 0; fine && i < list.count; i++) {
    uint32_t code = list.data[i];
    const range* found;
    if (how->strip_accents && find(self, MARK, code) != NULL) continue;
    if (!how->lowercase || (found = find(self, LOWER, code)) == NULL) {
      fine = push(out, code);
      continue;
    }
    for (uint32_t k = 1; fine && k <= self->texts.data[found->value]; k++) {
      fine = push(out, self->texts.data[found->value + k] + (k == 1 ? code - found->first : 0));
    }
  }
  free(list.data);
  return fine;
}

/* ---- pieces ---- */

/* The longest piece of the vocabulary first, again and again; a word with a part that is none is unknown. */
static int add_word(const wordpiece* self, const uint32_t* word, size_t length, codes* ids) {
  size_t before = ids->count, prefix = strlen(self->settings->prefix), *ends;
  char* text;
  int fine = 1;
  if (length == 0) return 1;
  if (length > self->settings->max_chars) return push(ids, (uint32_t)self->settings->unk);
  text = malloc(prefix + 4 * length + 1);
  ends = malloc((length + 1) * sizeof *ends); /* where each character ends, after the room for a prefix */
  if (text == NULL || ends == NULL) fine = 0;
  if (fine) {
    ends[0] = prefix;
    for (size_t i = 0; i < length; i++) ends[i + 1] = ends[i] + put_code(text + ends[i], word[i]);
  }
  for (size_t begin = 0, end; fine && begin < length; begin = end) {
    size_t from = ends[begin] - (begin ? prefix : 0);
    int64_t id = -1;
    if (begin) memcpy(text + from, self->settings->prefix, prefix); /* what it overwrites has been read */
    for (end = length; end > begin && (id = token_id(self, text + from, ends[end] - from)) < 0; end--) {
    }
    if (id < 0) {
      ids->count = before;
      fine = push(ids, (uint32_t)self->settings->unk);
      break;
    }
    fine = push(ids, (uint32_t)id);
  }
  free(text);
  free(ends);
  return fine;
}

static int add_words(const wordpiece* self, const char* text, const char* end, codes* ids) {
  codes list = {NULL, 0, 0};
  size_t begin = 0;
  int fine = normalize(self, text, end, &list);
  for (size_t i = 0; fine && i < list.count; i++) {
    int alone = find(self, PUNCT, list.data[i]) != NULL;
    if (!alone && find(self, SPACE, list.data[i]) == NULL) continue;
    fine = add_word(self, list.data + begin, i - begin, ids) && (!alone || add_word(self, list.data + i, 1, ids));
    begin = i + 1;
  }
  fine = fine && add_word(self, list.data + begin, list.count - begin, ids);
  free(list.data);
  return fine;
}

/* All ids of a text; the name of a special token in it counts as that token, the longest name first. */
static int add_text(const wordpiece* self, const char* text, codes* ids) {
  const char *begin = text, *at = text;
  while (*at) {
    size_t longest = 0, length, which = 0;
    for (size_t i = 0; self->settings->special[i] != NULL; i++) {
      length = strlen(self->settings->special[i]);
      if (length > longest && strncmp(at, self->settings->special[i], length) == 0) longest = length, which = i;
    }
    if (longest == 0) {
      at++;
      continue;
    }
    if (!add_words(self, begin, at, ids) || !push(ids, (uint32_t)self->settings->special_ids[which])) return 0;
    begin = at += longest;
  }
  return add_words(self, begin, at, ids);
}

/* Cut one list, or the longer of two, to `room` ids: transformers' "longest_first". */
static void cut(codes* first, codes* second, size_t room) {
  codes *few = first, *many = second;
  size_t n_few, n_many;
  if (second == NULL) {
    if (first->count > room) first->count = room;
    return;
  }
  if (first->count + second->count <= room) return;
  if (first->count > second->count) few = second, many = first;
  n_few = few->count;
  n_many = n_few > room || room - n_few < n_few ? n_few : room - n_few;
  if (n_few + n_many > room) n_few = room / 2, n_many = room / 2 + room % 2;
  if (few->count > n_few) few->count = n_few;
  if (many->count > n_many) many->count = n_many;
}

size_t wordpiece_encode(const wordpiece* self, const char* text, const char* pair, int64_t* ids, int64_t* types) {
  codes lists[2] = {{NULL, 0, 0}, {NULL, 0, 0}};
  size_t count = 0, marks = pair == NULL ? 2 : 3, longest = self->settings->max_length;
  if (longest >= marks && add_text(self, text, &lists[0]) && (pair == NULL || add_text(self, pair, &lists[1]))) {
    cut(&lists[0], pair == NULL ? NULL : &lists[1], longest - marks);
    ids[count] = self->settings->cls, types[count++] = 0;
    for (int which = 0; which < (pair == NULL ? 1 : 2); which++) {
      for (size_t i = 0; i < lists[which].count; i++) ids[count] = lists[which].data[i], types[count++] = which;
      ids[count] = self->settings->sep, types[count++] = which;
    }
  }
  free(lists[0].data);
  free(lists[1].data);
  return count;
}
