// From the pixels of any image to the model's input, in the very numbers that Pillow gives: the model was trained on
// images that Pillow resized, and the browser's own resizing differs.
import type { ImageInput } from './contract.js';

/** 8-bit values in rows, `channels` beside each other for every pixel. */
export interface Pixels {
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
  channels: number;
}

const PRECISION = 22; // bits behind the point of a weight, as in Pillow

/** What `ImageData` holds (RGBA; transparency is ignored) as the model's channels at the model's size. */
export function prepare(image: Pixels, input: ImageInput): Pixels {
  return resize(image.channels === input.channels ? image : convert(image, input.channels), input.width, input.height);
}

/** The tensor (1, channels, height, width): (value / 255 - mean) / std, rounded as it was in training. */
export function normalise(image: Pixels, input: ImageInput): Float32Array {
  const area = image.width * image.height;
  const values = new Float32Array(area * image.channels);
  for (let channel = 0; channel < image.channels; channel++) {
    const scale = Math.fround(1 / (255 * input.std[channel]!));
    const shift = Math.fround(-input.mean[channel]! / input.std[channel]!);
    for (let at = 0; at < area; at++) {
      values[channel * area + at] = Math.fround(image.data[at * image.channels + channel]! * scale) + shift;
    }
  }
  return values;
}

/** RGB(A) to RGB, or to gray by ITU-R 601 as Pillow's convert("L") has it. */
export function convert(image: Pixels, channels: 1 | 3): Pixels {
  const area = image.width * image.height;
  const data = new Uint8Array(area * channels);
  for (let at = 0; at < area; at++) {
    const from = at * image.channels;
    const [red, green, blue] = [image.data[from]!, image.data[from + 1]!, image.data[from + 2]!];
    if (channels === 1) data[at] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    else data.set([red, green, blue], at * 3);
  }
  return { data, width: image.width, height: image.height, channels };
}

/** Pillow's Resampling.BILINEAR: a triangle as wide as the scale, rows first, then columns, rounded in between. */
export function resize(image: Pixels, width: number, height: number): Pixels {
  let { data } = image;
  const { channels } = image;
  if (image.width !== width) {
    data = stretch(data, channels, image.width, width, {
      lines: image.height, lineStep: image.width * channels, newLineStep: width * channels, step: channels,
    });
  }
  if (image.height !== height) {
    data = stretch(data, channels, image.height, height, {
      lines: width, lineStep: channels, newLineStep: channels, step: width * channels,
    });
  }
  return { data, width, height, channels };
}

interface Layout { lines: number; lineStep: number; newLineStep: number; step: number }

function stretch(
  data: Uint8Array | Uint8ClampedArray, channels: number, size: number, newSize: number, layout: Layout,
): Uint8Array {
  const result = new Uint8Array(layout.lines * newSize * channels);
  for (let to = 0; to < newSize; to++) {
    const { first, weights } = window(size, newSize, to);
    for (let line = 0; line < layout.lines; line++) {
      for (let channel = 0; channel < channels; channel++) {
        let sum = 2 ** (PRECISION - 1);
        for (let tap = 0; tap < weights.length; tap++) {
          sum += data[line * layout.lineStep + (first + tap) * layout.step + channel]! * weights[tap]!;
        }
        const value = Math.floor(sum / 2 ** PRECISION);
        result[line * layout.newLineStep + to * layout.step + channel] = Math.min(255, Math.max(0, value));
      }
    }
  }
  return result;
}

/** Which old values a new one is made of, and their weights as whole numbers of 22 bits. */
function window(size: number, newSize: number, to: number): { first: number; weights: number[] } {
  const scale = size / newSize;
  const support = Math.max(scale, 1);
  const centre = (to + 0.5) * scale;
  const first = Math.max(0, Math.trunc(centre - support + 0.5));
  const last = Math.min(size, Math.trunc(centre + support + 0.5));
  const raw = [];
  for (let at = first; at < last; at++) raw.push(Math.max(0, 1 - Math.abs((at - centre + 0.5) * (1 / support))));
  const sum = raw.reduce((total, value) => total + value, 0);
  return { first, weights: raw.map((value) => Math.trunc(0.5 + (value / sum) * 2 ** PRECISION)) };
}
