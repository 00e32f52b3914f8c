// What model/edgeforge.json says, schema edgeforge.bundle/1. Python writes it; every wrapper reads it.

export interface ImageInput {
  kind: 'image';
  name: string;
  channels: 1 | 3;
  height: number;
  width: number;
  mean: number[];
  std: number[];
}

export interface WordPieceSettings {
  vocabulary: string;
  lowercase: boolean;
  strip_accents: boolean;
  clean_text: boolean;
  handle_chinese_chars: boolean;
  prefix: string;
  longest_word: number;
  unknown: string;
  before: number;
  after: number;
  special: Record<string, number>;
}

export interface TextInput {
  kind: 'text';
  ids: string;
  mask: string | null;
  max_length: number;
  lengths: number[];
  pad_id: number;
  truncate: 'left' | 'right';
  tokenizer: WordPieceSettings | null;
  tokenizer_file: string | null;
}

export interface Stored {
  offset: number;
  dtype: 'uint8' | 'int32' | 'float32';
  shape: number[];
}

export interface Golden {
  file: string;
  samples: number;
  inputs: Record<string, Stored>;
  outputs: Stored;
  max_abs_error: number;
  agreement: number;
  why: string;
  texts: { text: string; ids: number[] }[];
}

export interface Contract {
  schema: 'edgeforge.bundle/1';
  identifier: string;
  artifact: string;
  pipeline: string;
  models: { file: string; format: string; sha256: string; bytes: number }[];
  input: ImageInput | TextInput;
  output: { name: string; meaning: 'logits'; labels: string[] };
  golden: Golden;
}

/** The contract, and the address of the folder it lies in. Throws where it is not one of this schema. */
export async function readContract(folder: URL): Promise<Contract> {
  const contract = JSON.parse(await (await load(new URL('edgeforge.json', folder))).text()) as Contract;
  if (contract.schema !== 'edgeforge.bundle/1') {
    throw new Error(`edgeforge.json has the schema ${contract.schema}, and this wrapper reads edgeforge.bundle/1`);
  }
  return contract;
}

/** Fetches, or throws with the address and the server's answer. */
export async function load(address: URL): Promise<Response> {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: the server answers ${response.status}`);
  return response;
}
