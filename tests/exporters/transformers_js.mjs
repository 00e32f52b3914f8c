// Opens exported folders as Transformers.js opens any model's folder; writes what they give as JSON.
// Usage: node transformers_js.mjs FOLDER_OF_FOLDERS REQUEST.json
import { readFileSync } from 'node:fs';
import {
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RawImage,
    env,
    pipeline,
} from '@huggingface/transformers';

const [, , root, request] = process.argv;
env.allowRemoteModels = false;
env.localModelPath = root;
// Two things differ from its defaults: the file lies beside config.json, not in `onnx/`, and has no suffix.
const options = { subfolder: '', dtype: 'fp32' };

const readTexts = async ({ name, texts, long }) => {
    const tokenizer = await AutoTokenizer.from_pretrained(name);
    const model = await AutoModelForSequenceClassification.from_pretrained(name, options);
    const read = (batch) => tokenizer(batch, { padding: true, truncation: true });
    const [encoded, cut] = [read(texts), read([long])];
    const classify = await pipeline('text-classification', name, options);
    return {
        ids: encoded.input_ids.tolist().map((row) => row.map(Number)),
        logits: (await model(encoded)).logits.tolist(),
        cut: (await model(cut)).logits.tolist(),
        labels: await classify(texts),
    };
};

const readImages = async ({ name, images, size }) => {
    const processor = await AutoImageProcessor.from_pretrained(name);
    const model = await AutoModelForImageClassification.from_pretrained(name, options);
    const encoded = await processor(images.map((image) => new RawImage(Uint8ClampedArray.from(image), size, size, 1)));
    return { logits: (await model(encoded)).logits.tolist() };
};

const answers = {};
for (const one of JSON.parse(readFileSync(request, 'utf-8'))) {
    answers[one.name] = await (one.texts ? readTexts(one) : readImages(one));
}
console.log(JSON.stringify(answers));
