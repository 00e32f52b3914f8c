// The demo: opens the model, tests it, then classifies what is drawn, chosen or pasted. Nothing leaves the page.
import { Classifier } from './classifier.js';
import type { Prediction } from './classifier.js';
import { selfTest } from './self-test.js';

const find = <T extends HTMLElement>(id: string): T => {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no #${id}`);
  return element as T;
};

async function main(): Promise<void> {
  const status = find('status');
  const started = performance.now();
  const classifier = await Classifier.open();
  const opened = performance.now() - started;
  const { contract } = classifier;
  document.title = `${contract.pipeline}: ${contract.artifact}`;
  find('title').textContent = document.title;
  const found = await selfTest(classifier);
  const size = (contract.models[0]!.bytes / 1e6).toFixed(2);
  status.textContent =
    `${size} MB, opened in ${opened.toFixed(0)} ms. Self-test ${found.passed ? 'passed' : 'FAILED'}: ` +
    `${found.samples} recorded samples, largest difference ${found.maxAbsError.toPrecision(2)} ` +
    `(limit ${found.limit.toPrecision(2)}), ${(100 * found.agreement).toFixed(0)} % the same label` +
    (found.wrongTexts.length ? `; ${found.wrongTexts.length} texts are read differently` : '');
  status.dataset['result'] = JSON.stringify(found);
  status.className = found.passed ? 'passed' : 'failed';
  if (contract.input.kind === 'image') demoOfImages(classifier);
  else demoOfTexts(classifier);
}

function demoOfImages(classifier: Classifier): void {
  find('image-demo').hidden = false;
  const canvas = find<HTMLCanvasElement>('canvas');
  const context = canvas.getContext('2d', { willReadFrequently: true })!;
  const clear = () => {
    context.fillStyle = find<HTMLInputElement>('inverted').checked ? 'white' : 'black';
    context.fillRect(0, 0, canvas.width, canvas.height);
  };
  const classify = () =>
    answer(() => classifier.classifyImage(context.getImageData(0, 0, canvas.width, canvas.height)));
  canvas.addEventListener('pointermove', (event) => {
    if (!event.buttons) return;
    const scale = canvas.width / canvas.clientWidth;
    context.strokeStyle = find<HTMLInputElement>('inverted').checked ? 'black' : 'white';
    context.lineWidth = canvas.width / 12;
    context.lineCap = 'round';
    context.beginPath();
    context.moveTo((event.offsetX - event.movementX) * scale, (event.offsetY - event.movementY) * scale);
    context.lineTo(event.offsetX * scale, event.offsetY * scale);
    context.stroke();
  });
  canvas.addEventListener('pointerup', classify);
  find('clear').addEventListener('click', clear);
  find('inverted').addEventListener('change', clear);
  find<HTMLInputElement>('file').addEventListener('change', async (event) => {
    const file = (event.target as HTMLInputElement).files?.[0];
    if (!file) return;
    const image = await createImageBitmap(file);
    [canvas.width, canvas.height] = [image.width, image.height];
    context.drawImage(image, 0, 0);
    await classify();
  });
  clear();
}

function demoOfTexts(classifier: Classifier): void {
  find('text-demo').hidden = false;
  find('classify').addEventListener('click', () =>
    answer(() => classifier.classifyText(find<HTMLTextAreaElement>('text').value)));
}

/** Shows a prediction, or why there is none. */
async function answer(ask: () => Promise<Prediction>): Promise<void> {
  const shown = find('answer');
  try {
    const started = performance.now();
    const prediction = await ask();
    const took = performance.now() - started;
    const best = [...prediction.probabilities].sort((one, other) => other.probability - one.probability).slice(0, 5);
    shown.textContent = [
      ...best.map(({ label, probability }) => `${(100 * probability).toFixed(1).padStart(5)} %  ${label}`),
      `${took.toFixed(1)} ms`,
    ].join('\n');
    shown.dataset['result'] = JSON.stringify(prediction);
  } catch (error) {
    shown.textContent = String(error);
  }
}

main().catch((error: unknown) => {
  const status = find('status');
  status.textContent = `it does not work here: ${error}`;
  status.className = 'failed';
  status.dataset['result'] = JSON.stringify({ passed: false, error: String(error) });
});
