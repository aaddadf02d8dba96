// node run.mjs wordpiece.js settings.json vocab.txt unicode.txt < [[text, pair or null], ...] > [[ids, type ids], ...]
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
const [module, settings, vocabulary, characters] = process.argv.slice(2);
const { WordPiece } = await import(pathToFileURL(module));
const read = (path) => readFileSync(path, 'utf8');
const tokenizer = new WordPiece(JSON.parse(read(settings)), read(vocabulary), read(characters));
const found = JSON.parse(read(0)).map(([text, pair]) => {
  const { input_ids, token_type_ids } = tokenizer.encode(text, pair);
  return [input_ids, token_type_ids];
});
process.stdout.write(JSON.stringify(found));
