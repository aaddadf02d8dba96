// The page around classifier.js.
import { load } from './classifier.js';

const form = document.querySelector('form');
const output = document.querySelector('output');

function show(found) {
  const number = found.probability ?? found.scores.score;
  output.value = `${found.label} ${number.toFixed(6)}`;
  document.querySelector('#facts').textContent = `${found.ms.toFixed(1)} ms in onnxruntime-web ${found.runtime}`;
}

try {
  const classifier = await load();
  if (!classifier.tokenizer) {
    document.querySelector('#what').textContent = 'Token ids, with commas';
    document.querySelector('#second').remove();
  }
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    try {
      show(await classifier.classify(form.text.value, form.pair?.value || null));
    } catch (error) {
      output.value = error.message;
    }
  });
  form.querySelector('button').disabled = false;
  output.value = 'ready';
} catch (error) {
  output.value = `cannot start: ${error.message}`;
}
