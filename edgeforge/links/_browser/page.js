// The page: starts the worker that measures, and passes on what ends it.
const say = (answer) => fetch('say', { method: 'POST', body: JSON.stringify(answer) });
const failed = (what) => say({ error: what });

// A request that is never answered: it ends when the page is gone, or when whoever asked is.
fetch('alive').catch(() => {}).finally(() => window.close());

if (crossOriginIsolated) {
  const worker = new Worker('worker.js', { type: 'module' });
  worker.addEventListener('error', (event) => failed(event.message || 'the measuring script could not be loaded'));
} else {
  failed('the page is not isolated from other origins, so there are no threads and no exact clock');
}
