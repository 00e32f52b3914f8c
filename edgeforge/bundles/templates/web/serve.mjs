// Serves this folder on this machine only. The two headers allow WebAssembly threads and exact clocks; whichever server
// delivers the page later should send them too.
import { createReadStream, existsSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, join, normalize, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('.', import.meta.url));
const types = {
  '.css': 'text/css',
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.json': 'application/json',
  '.mjs': 'text/javascript',
  '.wasm': 'application/wasm',
};
const port = Number(process.argv[2] ?? 8080);

createServer((request, response) => {
  const { pathname } = new URL(request.url, 'http://localhost');
  const path = normalize(join(root, decodeURIComponent(pathname === '/' ? '/index.html' : pathname)));
  const found = path.startsWith(root.endsWith(sep) ? root : root + sep) && existsSync(path) && statSync(path).isFile();
  response.writeHead(found ? 200 : 404, {
    'Content-Type': types[extname(path)] ?? 'application/octet-stream',
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Embedder-Policy': 'require-corp',
  });
  if (found) createReadStream(path).pipe(response);
  else response.end('not found');
}).listen(port, '127.0.0.1', () => console.log(`http://localhost:${port}/`));
