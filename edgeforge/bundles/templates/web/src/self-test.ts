// Asks the model about the bundle's recorded inputs and compares the answers. Run it once after every update.
import type { Classifier } from './classifier.js';
import { load } from './contract.js';
import type { Stored } from './contract.js';

export interface SelfTest {
  passed: boolean;
  samples: number;
  maxAbsError: number;
  limit: number;
  agreement: number;
  /** Texts whose ids are not those of the original tokenizer. */
  wrongTexts: string[];
}

export async function selfTest(classifier: Classifier): Promise<SelfTest> {
  const { golden, input } = classifier.contract;
  const content = await (await load(new URL(golden.file, classifier.folder))).arrayBuffer();
  const wanted = rows(content, golden.outputs);
  let maxAbsError = 0;
  let same = 0;
  for (let sample = 0; sample < golden.samples; sample++) {
    const logits = input.kind === 'image'
      ? await classifier.fromPixels({
          data: rows(content, golden.inputs['pixels']!)[sample] as Uint8Array,
          width: input.width,
          height: input.height,
          channels: input.channels,
        })
      : await classifier.fromIds(unpadded(content, golden.inputs, input.ids, input.mask, sample));
    const expected = wanted[sample]!;
    // Math.max keeps a NaN, and a NaN is below no limit.
    for (let at = 0; at < expected.length; at++) {
      maxAbsError = Math.max(maxAbsError, Math.abs(logits[at]! - expected[at]!));
    }
    if (argmax(logits) === argmax(expected)) same++;
  }
  const wrongTexts = golden.texts
    .filter(({ text, ids }) => classifier.encode(text).join() !== ids.join())
    .map(({ text }) => text);
  const agreement = same / golden.samples;
  const close = maxAbsError <= golden.max_abs_error && agreement >= golden.agreement;
  return {
    passed: close && wrongTexts.length === 0,
    samples: golden.samples,
    maxAbsError,
    limit: golden.max_abs_error,
    agreement,
    wrongTexts,
  };
}

type Values = Uint8Array | Int32Array | Float32Array;

/** An array of the golden file, cut into its samples. */
function rows(content: ArrayBuffer, stored: Stored): Values[] {
  const [samples, ...shape] = stored.shape as [number, ...number[]];
  const size = shape.reduce((product, value) => product * value, 1);
  const kinds = { uint8: Uint8Array, int32: Int32Array, float32: Float32Array };
  const all = new kinds[stored.dtype](content, stored.offset, samples * size);
  return Array.from({ length: samples }, (_, at) => all.subarray(at * size, (at + 1) * size));
}

/** A sample's ids without what fills it up. */
function unpadded(
  content: ArrayBuffer, inputs: Record<string, Stored>, ids: string, mask: string | null, sample: number,
): number[] {
  const all = Array.from(rows(content, inputs[ids]!)[sample]!);
  const kept = mask ? rows(content, inputs[mask]!)[sample]! : null;
  return kept ? all.filter((_, at) => kept[at] === 1) : all;
}

function argmax(values: ArrayLike<number>): number {
  let best = 0;
  for (let at = 1; at < values.length; at++) if (values[at]! > values[best]!) best = at;
  return best;
}
