export { createKernels, type KernelOptions, Kernels, storedDim } from "./kernels.js";
export { Budget, PagedMemory } from "./memory.js";
export { threadsAvailable } from "./threads.js";
