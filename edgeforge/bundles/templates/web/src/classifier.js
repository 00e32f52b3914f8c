// Opens the bundle's model and classifies images or texts. Everything specific to the model comes from edgeforge.json.
import * as ort from 'onnxruntime-web/wasm';
import { load, readContract } from './contract.js';
import { normalise, prepare } from './image.js';
import { WordPiece } from './wordpiece.js';
export class Classifier {
    contract;
    folder;
    session;
    tokenizer;
    constructor(contract, folder, session, tokenizer) {
        this.contract = contract;
        this.folder = folder;
        this.session = session;
        this.tokenizer = tokenizer;
    }
    /** `folder` is where edgeforge.json and the model lie. Threads need a page that is cross-origin isolated. */
    static async open(folder = new URL('../model/', import.meta.url)) {
        const contract = await readContract(folder);
        const file = contract.models[0].file.split('/').pop();
        const model = await (await load(new URL(file, folder))).arrayBuffer();
        if (!globalThis.crossOriginIsolated)
            ort.env.wasm.numThreads = 1;
        const session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ['wasm'] });
        const settings = contract.input.kind === 'text' ? contract.input.tokenizer : null;
        const tokenizer = settings
            ? new WordPiece(settings, contract.input, await (await load(new URL(settings.vocabulary, folder))).text())
            : null;
        return new Classifier(contract, folder, session, tokenizer);
    }
    /** An image of any size: what a canvas's `getImageData` gives. */
    async classifyImage(image) {
        const input = this.image();
        const pixels = prepare({ data: image.data, width: image.width, height: image.height, channels: 4 }, input);
        return this.predict(await this.fromPixels(pixels));
    }
    /** A text. Throws where the model's tokenizer is not built in: then make ids with a library, and `classifyIds`. */
    async classifyText(text) {
        return this.classifyIds(this.encode(text));
    }
    /** Token ids of one text, with the special tokens around it. */
    async classifyIds(ids) {
        return this.predict(await this.fromIds(ids));
    }
    /** The ids of a text. Throws where the tokenizer is not built in. */
    encode(text) {
        if (!this.tokenizer)
            throw new Error('this model has another tokenizer than WordPiece; see README.md');
        return this.tokenizer.encode(text);
    }
    /** Logits of an image that has the model's size and channels already. */
    async fromPixels(image) {
        const input = this.image();
        const shape = [1, input.channels, input.height, input.width];
        return this.run({ [input.name]: new ort.Tensor('float32', normalise(image, input), shape) });
    }
    /** Logits of one text's ids. */
    async fromIds(ids) {
        const input = this.text();
        if (ids.length > input.max_length)
            throw new Error(`${ids.length} tokens, and the model takes ${input.max_length}`);
        const tensor = (values) => new ort.Tensor('int64', BigInt64Array.from(values.map(BigInt)), [1, values.length]);
        const feeds = { [input.ids]: tensor(ids) };
        if (input.mask)
            feeds[input.mask] = tensor(ids.map(() => 1));
        return this.run(feeds);
    }
    /** Softmax over the labels. */
    predict(logits) {
        const highest = Math.max(...logits);
        const powers = Array.from(logits, (value) => Math.exp(value - highest));
        const sum = powers.reduce((total, value) => total + value, 0);
        const probabilities = this.contract.output.labels.map((label, at) => ({ label, probability: powers[at] / sum }));
        const best = probabilities.reduce((one, other) => (other.probability > one.probability ? other : one));
        return { ...best, probabilities };
    }
    async run(feeds) {
        const output = (await this.session.run(feeds))[this.contract.output.name];
        return output.data;
    }
    image() {
        if (this.contract.input.kind !== 'image')
            throw new Error('this model takes texts');
        return this.contract.input;
    }
    text() {
        if (this.contract.input.kind !== 'text')
            throw new Error('this model takes images');
        return this.contract.input;
    }
}
