/* BERT's tokeniser: UTF-8 text in, token ids out, the same ids as Hugging Face's `tokenizers`.
 * Characters are classified by unicode.txt, so nothing depends on a locale. One tokeniser serves any number of threads. */
#ifndef WORDPIECE_H
#define WORDPIECE_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
  int lowercase, strip_accents, clean_text, chinese_chars; /* 0 or 1 */
  int64_t cls, sep, unk;
  size_t max_length; /* tokens of a text or a pair, [CLS] and [SEP] counted */
  size_t max_chars;  /* longer words are unknown */
  const char* prefix; /* of a piece that goes on: "##" */
  const char* const* special; /* names that count as one token wherever they stand; NULL ends the list */
  const int64_t* special_ids;
} wordpiece_settings;

typedef struct wordpiece wordpiece;

/* Reads vocab.txt and unicode.txt; NULL when a file cannot be read or memory is short. The settings must outlive it. */
wordpiece* wordpiece_open(const wordpiece_settings* settings, const char* vocab_path, const char* unicode_path);
void wordpiece_close(wordpiece* tokenizer);

/* Ids and type ids of a text or, where `pair` is not NULL, of a pair; at most max_length each, the caller's arrays.
 * Returns how many, 0 when memory is short. */
size_t wordpiece_encode(const wordpiece* tokenizer, const char* text, const char* pair, int64_t* ids, int64_t* types);

#endif
