export function reducedDocument(): object
export function fingerprint(document: object): string
