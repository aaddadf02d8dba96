// BERT's tokeniser: text in, token ids out, the same ids as Hugging Face's `tokenizers`.
//
// Characters are classified by unicode.txt, not by the browser, whose Unicode version is its own.
// Nothing here is asynchronous and nothing is fetched: the caller hands over the two texts.

const S = { base: 0xac00, l: 0x1100, v: 0x1161, t: 0x11a7, vCount: 21, tCount: 28, count: 11172 }; // Hangul

/** The tables of unicode.txt. */
export class Characters {
  constructor(text) {
    for (const kind of ['drop', 'space', 'cjk', 'mark', 'punct']) this[kind] = new Set();
    this.order = new Map();
    this.split = new Map();
    this.lower = new Map();
    for (const line of text.split('\n')) {
      const [kind, ...words] = line.trim().split(/\s+/);
      if (!kind || kind.startsWith('#')) continue;
      const numbers = words.map((word) => parseInt(word, 16));
      const [first, last, third] = numbers;
      if (kind === 'split') this.split.set(first, numbers.slice(1));
      else if (kind === 'cjk') this.cjk.add([first, last]); // 81,264 characters: ranges, not a set
      else if (kind === 'lower') {
        for (let code = first; code <= last; code += third) {
          const [to, ...rest] = numbers.slice(3);
          this.lower.set(code, [to + code - first, ...rest]);
        }
      } else if (kind === 'order') for (let code = first; code <= last; code++) this.order.set(code, third);
      else if (kind === 'drop' && last - first > 0xfff) (this.dropRanges ??= []).push([first, last]);
      else for (let code = first; code <= last; code++) this[kind].add(code);
    }
    this.cjk = [...this.cjk];
    this.dropRanges ??= [];
  }

  isDropped(code) { return this.drop.has(code) || within(this.dropRanges, code); }

  isChinese(code) { return within(this.cjk, code); }

  /** Canonical decomposition and order, Unicode's NFD. */
  decompose(codes) {
    const out = [];
    for (const code of codes) {
      const at = code - S.base;
      if (at >= 0 && at < S.count) {
        out.push(S.l + Math.floor(at / (S.vCount * S.tCount)));
        out.push(S.v + Math.floor((at % (S.vCount * S.tCount)) / S.tCount));
        if (at % S.tCount) out.push(S.t + (at % S.tCount));
      } else out.push(...(this.split.get(code) ?? [code]));
    }
    for (let i = 1; i < out.length; i++) {
      const order = this.order.get(out[i]) ?? 0;
      for (let j = i; order && j > 0 && (this.order.get(out[j - 1]) ?? 0) > order; j--) {
        [out[j - 1], out[j]] = [out[j], out[j - 1]];
      }
    }
    return out;
  }
}

const within = (ranges, code) => ranges.some(([first, last]) => first <= code && code <= last);

const SPACE = 0x20;

export class WordPiece {
  /**
   * @param {object} settings `tokenizer` of preprocessing.json
   * @param {string} vocabulary vocab.txt: one token a line, its id is its line, from 0
   * @param {string} characters unicode.txt
   */
  constructor(settings, vocabulary, characters) {
    this.settings = settings;
    this.characters = new Characters(characters);
    this.ids = new Map(vocabulary.split('\n').map((token, id) => [token, id]));
    this.special = Object.entries(settings.special_tokens).sort(([a], [b]) => b.length - a.length);
  }

  /** Ids of a text, or of a pair: { input_ids, token_type_ids }, arrays of numbers with [CLS] and [SEP]. */
  encode(text, pair = null, maxLength = this.settings.max_length) {
    const { cls, sep } = this.settings;
    let first = this.pieces(text);
    let second = pair === null ? null : this.pieces(pair);
    const room = Math.max(0, maxLength - (second ? 3 : 2));
    [first, second] = truncate(first, second, room);
    const input_ids = [cls, ...first, sep];
    const token_type_ids = input_ids.map(() => 0);
    if (second) {
      input_ids.push(...second, sep);
      while (token_type_ids.length < input_ids.length) token_type_ids.push(1);
    }
    return { input_ids, token_type_ids };
  }

  /** Ids of a text without [CLS] and [SEP]; the name of a special token in it counts as that token. */
  pieces(text) {
    const ids = [];
    let begin = 0;
    for (let at = 0; at < text.length; ) {
      const found = this.special.find(([token]) => text.startsWith(token, at));
      if (!found) { at++; continue; }
      this.#words(text.slice(begin, at), ids);
      ids.push(found[1]);
      begin = at += found[0].length;
    }
    this.#words(text.slice(begin), ids);
    return ids;
  }

  #words(text, ids) {
    let word = [];
    const end = () => {
      if (word.length) this.#piecesOf(word, ids);
      word = [];
    };
    for (const code of this.#normalize(text)) {
      if (this.characters.space.has(code)) end();
      else if (this.characters.punct.has(code)) {
        end();
        word = [code];
        end();
      } else word.push(code);
    }
    end();
  }

  #normalize(text) {
    const { characters, settings } = this;
    let codes = Array.from(text, (char) => char.codePointAt(0)).map((code) =>
      code >= 0xd800 && code <= 0xdfff ? 0xfffd : code); // half a surrogate pair is no character
    if (settings.clean_text) {
      codes = codes.filter((code) => !characters.isDropped(code));
      codes = codes.map((code) => (characters.space.has(code) ? SPACE : code));
    }
    if (settings.chinese_chars) codes = codes.flatMap((code) => (characters.isChinese(code) ? [SPACE, code, SPACE] : [code]));
    if (settings.strip_accents) codes = characters.decompose(codes).filter((code) => !characters.mark.has(code));
    if (settings.lowercase) codes = codes.flatMap((code) => characters.lower.get(code) ?? [code]);
    return codes;
  }

  /** The longest piece of the vocabulary first, again and again; a word with a part that is none is unknown. */
  #piecesOf(word, ids) {
    const { unk, prefix, max_chars } = this.settings;
    if (word.length > max_chars) return void ids.push(unk);
    const chars = word.map((code) => String.fromCodePoint(code));
    const found = [];
    for (let begin = 0; begin < chars.length; ) {
      let end = chars.length;
      let id;
      for (; end > begin; end--) {
        id = this.ids.get((begin ? prefix : '') + chars.slice(begin, end).join(''));
        if (id !== undefined) break;
      }
      if (id === undefined) return void ids.push(unk);
      found.push(id);
      begin = end;
    }
    ids.push(...found);
  }
}

/** Cut one list, or the longer of two, to `room` ids: transformers' "longest_first". */
function truncate(first, second, room) {
  if (!second) return [first.slice(0, room), null];
  if (first.length + second.length <= room) return [first, second];
  let [short, long] = [first.length, second.length].sort((a, b) => a - b);
  long = short > room ? short : Math.max(short, room - short);
  if (short + long > room) [short, long] = [Math.floor(room / 2), Math.floor(room / 2) + (room % 2)];
  if (first.length > second.length) [short, long] = [long, short];
  return [first.slice(0, short), second.slice(0, long)];
}
