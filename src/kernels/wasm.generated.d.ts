/** The kernels for a shared memory, base64. The module is written by scripts/build-kernels.mjs. */
export declare const shared: string;
/** The same for a memory that is not shared. */
export declare const single: string;
