// What model/edgeforge.json says, schema edgeforge.bundle/1. Python writes it; every wrapper reads it.
/** The contract, and the address of the folder it lies in. Throws where it is not one of this schema. */
export async function readContract(folder) {
    const contract = JSON.parse(await (await load(new URL('edgeforge.json', folder))).text());
    if (contract.schema !== 'edgeforge.bundle/1') {
        throw new Error(`edgeforge.json has the schema ${contract.schema}, and this wrapper reads edgeforge.bundle/1`);
    }
    return contract;
}
/** Fetches, or throws with the address and the server's answer. */
export async function load(address) {
    const response = await fetch(address);
    if (!response.ok)
        throw new Error(`${address}: the server answers ${response.status}`);
    return response;
}
