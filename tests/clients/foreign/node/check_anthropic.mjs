// The Anthropic SDK for Node against /v1/messages.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import Anthropic from '@anthropic-ai/sdk';
import { CALLER, Forecast, GUIDE, KEY, QUESTION, TOOL, URL } from './appliance.mjs';

const sdk = new Anthropic({ baseURL: URL, apiKey: KEY, maxRetries: 0, timeout: 50_000 });
const tool = {
  name: 'forecast',
  description: TOOL.function.description,
  input_schema: TOOL.function.parameters,
};

test('answer has words and usage', async () => {
  const reply = await sdk.messages.create({ model: GUIDE, messages: QUESTION, max_tokens: 60 });
  assert.match(reply.content[0].text, /edged/);
  assert.ok(reply.usage.output_tokens > 0);
});

test('stream', async () => {
  const stream = sdk.messages.stream({ model: GUIDE, messages: QUESTION, max_tokens: 60 });
  let text = '';
  stream.on('text', (piece) => { text += piece; });
  const final = await stream.finalMessage();
  assert.equal(final.content[0].text, text);
});

test('tool use and its result', async () => {
  const reply = await sdk.messages.create({
    model: CALLER,
    messages: QUESTION,
    tools: [tool],
    tool_choice: { type: 'any', disable_parallel_tool_use: true },
    max_tokens: 200,
  });
  assert.equal(reply.stop_reason, 'tool_use');
  const use = reply.content.find((block) => block.type === 'tool_use');
  Forecast.parse(use.input);
  const after = await sdk.messages.create({
    model: CALLER,
    messages: [
      ...QUESTION,
      { role: 'assistant', content: reply.content },
      { role: 'user', content: [{ type: 'tool_result', tool_use_id: use.id, content: 'sunny' }] },
    ],
    max_tokens: 8,
  });
  assert.equal(after.content[0].type, 'text');
});

test('errors are the SDK\'s own', async () => {
  await assert.rejects(
    sdk.messages.create({ model: 'nobody', messages: QUESTION, max_tokens: 5 }),
    Anthropic.NotFoundError,
  );
});
