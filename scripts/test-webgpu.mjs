// Runs the model tests on WebGPU. On a machine without a GPU it looks for SwiftShader's Vulkan driver, which Debian's
// package chromium brings (libvulkan1 is needed too).
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";

const SWIFTSHADER = [
  "/usr/lib/chromium/vk_swiftshader_icd.json",
  "/usr/lib64/chromium-browser/vk_swiftshader_icd.json",
];
const env = { ...process.env };
const gpu = existsSync("/dev/dri") || existsSync("/dev/nvidia0") || process.platform !== "linux";
if (!gpu && !env.VK_DRIVER_FILES) {
  const driver = SWIFTSHADER.find((file) => existsSync(file));
  if (!driver) {
    console.error(
      "There is no GPU here and no SwiftShader. Install the packages chromium and libvulkan1, or set VK_DRIVER_FILES.",
    );
    process.exit(2);
  }
  console.log(`no GPU found: running on SwiftShader (${driver})`);
  env.VK_DRIVER_FILES = driver;
}
const run = spawnSync("npx", ["vitest", "run", "--config", "vitest.webgpu.config.ts"], {
  env,
  stdio: "inherit",
  shell: process.platform === "win32",
});
process.exit(run.status ?? 1);
