"""The PyTorch side of bench/train.ts: the same model, weights, batches and optimiser, one step at a time.

Reads a number of steps a line from standard input, takes them, and answers with a line of JSON. "0" ends it.
Arguments: the folder with the first weights, and the shape as JSON.
"""

import json
import struct
import sys
import time

import torch
import torch.nn.functional as F

folder, shape = sys.argv[1], json.loads(sys.argv[2])
B, T, V = shape["rows"], shape["length"], shape["vocabulary"]
L, H, d = shape["layers"], shape["heads"], shape["width"]
D = d // H
torch.set_num_threads(shape["threads"])


def read_weights(path):
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        data = bytearray(file.read())
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        flat = torch.frombuffer(data, dtype=torch.float32, offset=begin, count=(end - begin) // 4)
        tensors[name] = flat.reshape(entry["shape"]).clone().requires_grad_()
    return tensors


W = read_weights(folder + "/model.safetensors")

positions = torch.arange(T, dtype=torch.float32)
frequencies = 10000.0 ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)
angles = positions[:, None] * frequencies[None, :]  # [T, D / 2]
cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)  # [T, D]
hidden = torch.full((T, T), float("-inf")).triu(1)  # [T, T]


def rms(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def rotate(x):
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def split(x):
    return x.view(B, T, H, D).transpose(1, 2)  # [B, H, T, D]


def forward(ids):
    x = F.embedding(ids, W["model.embed_tokens.weight"])  # [B, T, d]
    for l in range(L):
        at = lambda name: W[f"model.layers.{l}.{name}.weight"]
        a = rms(x, at("input_layernorm"))
        q = rotate(split(F.linear(a, at("self_attn.q_proj")))) * D**-0.5
        k = rotate(split(F.linear(a, at("self_attn.k_proj"))))
        v = split(F.linear(a, at("self_attn.v_proj")))
        pattern = (q @ k.transpose(-1, -2) + hidden).softmax(-1)  # [B, H, T, T]
        heads = (pattern @ v).transpose(1, 2).reshape(B, T, d)
        x = x + F.linear(heads, at("self_attn.o_proj"))
        m = rms(x, at("post_attention_layernorm"))
        x = x + F.linear(F.silu(F.linear(m, at("mlp.gate_proj"))) * F.linear(m, at("mlp.up_proj")), at("mlp.down_proj"))
    return F.linear(rms(x, W["model.norm.weight"]), W["model.embed_tokens.weight"])  # [B, T, V]


decayed = [w for name, w in W.items() if w.dim() > 1 and "embed" not in name]
others = [w for name, w in W.items() if not (w.dim() > 1 and "embed" not in name)]
optimizer = torch.optim.AdamW(
    [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
    lr=shape["rate"],
    betas=(0.9, 0.95),
    eps=1e-8,
    foreach=True,
)
parameters = decayed + others


def batch(step):
    # the formula of bench/train.ts
    i = torch.arange(B * T, dtype=torch.int64)
    ids = ((i * 7919 + step * 131) % 65521 % V).view(B, T)
    targets = torch.full((B, T), -100)
    targets[:, :-1] = ids[:, 1:]
    return ids, targets


step = 0
for line in sys.stdin:
    count = int(line)
    if count == 0:
        break
    begin = time.perf_counter()
    losses = []
    for _ in range(count):
        ids, targets = batch(step)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(forward(ids).view(B * T, V), targets.view(B * T))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        step += 1
    print(json.dumps({"seconds": time.perf_counter() - begin, "losses": losses}), flush=True)

with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
print(json.dumps({"peak": peak, "version": f"PyTorch {torch.__version__}"}), flush=True)
