import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { FoveaError } from "../error.js";
import { type ChatMessage, chatTemplateOf, createChatTemplate, templateTokens } from "./chat.js";

// Runs are alike, so that a failure is the change's.
fc.configureGlobal({ seed: 7 });

/** Templates in the ways of the families: ChatML, headers with trimming, no system role, turns within turns. */
const TEMPLATES: Record<string, string> = {
  chatml: `{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}`,
  llama3: `{{- bos_token }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}`,
  gemma: `{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}`,
  zephyr: `{% for message in messages %}\\n{% if message['role'] == 'user' %}\\n{{ '<|user|>\\n' + message['content'] + eos_token }}\\n{% elif message['role'] == 'system' %}\\n{{ '<|system|>\\n' + message['content'] + eos_token }}\\n{% else %}\\n{{ '<|assistant|>\\n' + message['content'] + eos_token }}\\n{% endif %}{% endfor %}`,
};

const tokens = { bos_token: "<s>", eos_token: "</s>" };
const contentOf = ({ content }: ChatMessage): string => (typeof content === "string" ? content : content.join(""));

describe.each(Object.entries(TEMPLATES))("%s", (_, source) => {
  const template = createChatTemplate(source, tokens);

  test("the span of each message is its content, trimmed or not", () => {
    const words = fc.oneof(
      fc.constantFrom("user", "assistant", "model", "\n", " ", "<|im_end|>", "<|user|>", "hello", "", "</s>"),
      fc.string({ unit: "grapheme", maxLength: 5 }),
    );
    const content = fc.array(words, { maxLength: 5 }).map((list) => list.join(""));
    fc.assert(
      fc.property(fc.array(content, { minLength: 1, maxLength: 5 }), fc.boolean(), (contents, addGenerationPrompt) => {
        const messages = contents.map((text, i) => ({ role: i % 2 === 0 ? "user" : "assistant", content: text }));
        const rendered = template.render(messages, { addGenerationPrompt });
        let end = 0;
        rendered.messages.forEach(({ role, content: span, parts }, i) => {
          expect(role).toBe(messages[i].role);
          expect(span).toBeDefined();
          if (!span) return;
          const found = rendered.text.slice(...span);
          expect([messages[i].content, messages[i].content.trim()]).toContain(found);
          expect(span[0]).toBeGreaterThanOrEqual(end);
          end = span[1];
          expect(parts).toEqual([span]);
        });
        // Put together again from the spans alone: nothing else of the contents is in the text.
        expect(
          rendered.text.length -
            rendered.messages.reduce((n, m) => n + (m.content ? m.content[1] - m.content[0] : 0), 0),
        ).toBe(
          template.render(
            messages.map((m) => ({ ...m, content: "x" })),
            { addGenerationPrompt },
          ).text.length - messages.length,
        );
      }),
      { numRuns: 200 },
    );
  });

  test("a content in parts has a span for each", () => {
    const parts = ["  one\n", "two", " three  "];
    const { text, messages } = template.render([{ role: "user", content: parts }]);
    const found = messages[0].parts?.map((span) => text.slice(...span)) ?? [];
    expect(found[1]).toBe("two");
    expect(found.map((part) => part.trim())).toEqual(["one", "two", "three"]);
    expect(found.join("")).toBe(text.slice(...(messages[0].content ?? [0, 0])));
  });
});

test("renders as written", () => {
  const messages = [
    { role: "system", content: "Be brief." },
    { role: "user", content: "user" },
  ];
  const { text, messages: spans } = createChatTemplate(TEMPLATES.chatml).render(messages, {
    addGenerationPrompt: true,
  });
  expect(text).toBe(
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nuser<|im_end|>\n<|im_start|>assistant\n",
  );
  expect(spans.map(({ content }) => content)).toEqual([
    [19, 28],
    [56, 60],
  ]);
  expect(messages.map(contentOf)).toEqual(["Be brief.", "user"]);
});

test("a template that rewrites a content has no span for it, and the others keep theirs", () => {
  const template = createChatTemplate(
    "{% for m in messages %}[{{ m.role }}]{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}{% endfor %}",
  );
  const { text, messages } = template.render([
    { role: "user", content: "Why?" },
    { role: "assistant", content: "<think>hm</think>Because." },
    { role: "user", content: "Oh." },
  ]);
  expect(text).toBe("[user]Why?[assistant]Because.[user]Oh.");
  expect(messages[0].content).toEqual([6, 10]);
  expect(messages[1].content).toBeUndefined();
  expect(text.slice(...(messages[2].content ?? [0, 0]))).toBe("Oh.");
});

test("tools, variables and the date reach the template", () => {
  const template = createChatTemplate(
    "{% if tools %}{{ tools[0].name }}{% endif %} {{ enable_thinking }} {{ strftime_now('%d %b %Y') }} {% for i in range(3) %}{{ i }}{% endfor %}",
  );
  const { text } = template.render([], {
    tools: [{ name: "search" }],
    variables: { enable_thinking: false },
    date: new Date(2024, 6, 26),
  });
  expect(text).toBe("search false 26 Jul 2024 012");
});

test("refusals say why", () => {
  const gemma = createChatTemplate(TEMPLATES.gemma, tokens);
  expect(() => gemma.render([{ role: "system", content: "x" }])).toThrow(/System role not supported/);
  expect(() => gemma.render([{ role: "assistant", content: "x" }])).toThrow(/must alternate/);
  expect(() => gemma.render([{ role: "user" } as unknown as ChatMessage])).toThrow(/message 0 needs a role/);
  expect(() => createChatTemplate("{% for %}")).toThrow(FoveaError);
  expect(() => createChatTemplate("{% for i in range(1000000000) %}x{% endfor %}").render([])).toThrow(/range of/);
});

test("templates and tokens out of tokenizer_config.json", () => {
  expect(chatTemplateOf({ chat_template: "a" })).toBe("a");
  expect(
    chatTemplateOf({
      chat_template: [
        { name: "rag", template: "r" },
        { name: "default", template: "d" },
      ],
    }),
  ).toBe("d");
  expect(chatTemplateOf({ chat_template: [{ name: "rag", template: "r" }] }, { name: "rag" })).toBe("r");
  expect(chatTemplateOf({}, { file: "f" })).toBe("f");
  expect(chatTemplateOf({})).toBeUndefined();
  expect(templateTokens({ bos_token: "<s>", eos_token: { content: "</s>" }, pad_token: null })).toEqual(tokens);
});
