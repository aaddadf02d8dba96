/* run vocab.txt unicode.txt: records of standard input, "0 TEXT" or "1 TEXT", zero byte, PAIR, zero byte;
 * one line of ids, a bar and type ids each. SETTINGS is a file that defines `settings`. */
#include <stdio.h>
#include <stdlib.h>
#include SETTINGS

static char* record(void) {
  size_t count = 0, room = 64;
  char* text = malloc(room);
  for (int byte; (byte = getchar()) > 0; text[count++] = (char)byte) {
    if (count + 2 > room) text = realloc(text, room *= 2);
  }
  text[count] = 0;
  return text;
}

int main(int count, char** words) {
  wordpiece* tokenizer = count == 3 ? wordpiece_open(&settings, words[1], words[2]) : NULL;
  int64_t* ids = malloc(2 * settings.max_length * sizeof *ids);
  if (tokenizer == NULL) return 1;
  for (;;) {
    char *text = record(), *pair = record();
    size_t length = 0;
    if (text[0] != 0) {
      length = wordpiece_encode(tokenizer, text + 2, text[0] == '1' ? pair : NULL, ids, ids + settings.max_length);
      for (size_t i = 0; i < length; i++) printf("%lld ", (long long)ids[i]);
      printf("|");
      for (size_t i = 0; i < length; i++) printf(" %lld", (long long)ids[settings.max_length + i]);
      printf("\n");
    }
    free(text);
    free(pair);
    if (length == 0) break;
  }
  free(ids);
  wordpiece_close(tokenizer);
  return 0;
}
