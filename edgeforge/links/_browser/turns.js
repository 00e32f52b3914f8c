// What measuring files and measuring language models have in common: rounds in shuffled order, and runs without a pause.

export const now = () => performance.now();

export async function say(answer) {
  await fetch('say', { method: 'POST', body: JSON.stringify(answer) });
}

export async function bytes(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.arrayBuffer();
}

/** Numbers from 0 to 1 that a seed decides (mulberry32). */
function numbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function shuffled(items, next) {
  const found = [...items];
  for (let last = found.length - 1; last > 0; last -= 1) {
    const other = Math.floor(next() * (last + 1));
    [found[last], found[other]] = [found[other], found[last]];
  }
  return found;
}

/** Takes a sample of every subject in each round, in an order of its own; `tell` is given a whole round, by subject. */
export async function rounds(job, sample, tell) {
  const next = numbers(job.seed);
  for (let number = -job.warmup; number < job.samples; number += 1) {
    const round = {};
    for (const name of shuffled(Object.keys(job.subjects), next)) round[name] = await sample(name);
    if (number >= 0) await say(tell(round));
  }
}

/** One sample (ms) after the other, for so long as the job asks. They are told in order; nothing waits for that. */
export async function sustain(job, sample) {
  for (const [name, seconds] of Object.entries(job.sustained)) {
    const begin = now();
    let told = Promise.resolve();
    for (let at = 0; at < seconds; at = (now() - begin) / 1000) {
      const sustained = { subject: name, at_s: at, latency_ms: await sample(name, seconds) };
      told = told.then(() => say({ sustained }));
      await breathe();
    }
    await told;
  }
}

/** Lets the browser do its own work, without the pause of 4 ms that a timer makes. */
function breathe() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = resolve;
    port2.postMessage(null);
  });
}
