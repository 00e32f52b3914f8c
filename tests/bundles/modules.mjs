// Runs the page's modules on cases of samples.py and writes what they give as JSON.
// Usage: node modules.mjs FOLDER_OF_MODULES CASES.json
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [, , folder, cases] = process.argv;
const { images, texts } = JSON.parse(readFileSync(cases, 'utf-8'));
const { normalise, prepare } = await import(pathToFileURL(`${folder}/image.js`));
const { WordPiece } = await import(pathToFileURL(`${folder}/wordpiece.js`));

console.log(JSON.stringify({
  images: images.map(({ rgba, size: [width, height], input }) => {
    const pixels = prepare({ data: Uint8ClampedArray.from(rgba), width, height, channels: 4 }, input);
    return { pixels: Array.from(pixels.data), values: Array.from(normalise(pixels, input)) };
  }),
  texts: texts.map(({ settings, input, vocabulary, texts: all }) => {
    const tokenizer = new WordPiece(settings, input, vocabulary);
    return all.map((text) => tokenizer.encode(text));
  }),
}));
