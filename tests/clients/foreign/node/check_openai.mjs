// The openai SDK for Node: every resource that edged serves.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod';
import {
  CALLER, EMBEDDER, Forecast, GUIDE, KEY, LONG, QUESTION, TOOL, TOO_SHORT_MS, V1,
} from './appliance.mjs';

const sdk = new OpenAI({ baseURL: V1, apiKey: KEY, maxRetries: 0, timeout: 50_000 });
const only = { tool_choice: 'required', parallel_tool_calls: false, max_tokens: 200 };

test('models', async () => {
  const names = (await sdk.models.list()).data.map((model) => model.id);
  assert.ok(names.includes(GUIDE) && names.includes(CALLER));
  assert.equal((await sdk.models.retrieve(GUIDE)).id, GUIDE);
});

test('answer has words and usage', async () => {
  const reply = await sdk.chat.completions.create({
    model: GUIDE, messages: QUESTION, max_tokens: 60,
  });
  assert.match(reply.choices[0].message.content, /edged/);
  assert.equal(
    reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens,
  );
});

test('stream is the whole answer', async () => {
  const asked = { model: GUIDE, messages: QUESTION, max_tokens: 40 };
  const whole = await sdk.chat.completions.create(asked);
  let text = '';
  let usage;
  for await (const chunk of await sdk.chat.completions.create({
    ...asked, stream: true, stream_options: { include_usage: true },
  })) {
    text += chunk.choices[0]?.delta.content ?? '';
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
});

test('stream helper', async () => {
  const stream = sdk.chat.completions.stream({ model: GUIDE, messages: QUESTION });
  assert.match(await stream.finalContent(), /edged/);
});

test('tool call and its answer', async () => {
  const reply = await sdk.chat.completions.create({
    model: CALLER, messages: QUESTION, tools: [TOOL], ...only,
  });
  const { message, finish_reason: reason } = reply.choices[0];
  assert.equal(reason, 'tool_calls');
  assert.equal(message.tool_calls.length, 1);
  const [call] = message.tool_calls;
  Forecast.parse(JSON.parse(call.function.arguments));
  const after = await sdk.chat.completions.create({
    model: CALLER,
    messages: [...QUESTION, message, { role: 'tool', tool_call_id: call.id, content: 'sunny' }],
    tools: [TOOL],
    tool_choice: 'none',
    max_tokens: 8,
  });
  assert.ok(after.choices[0].message.content);
});

test('tools run by the SDK until the answer', async () => {
  const called = [];
  const runner = sdk.chat.completions.runTools({
    model: CALLER,
    messages: QUESTION,
    max_tokens: 100,
    tool_choice: { type: 'function', function: { name: 'forecast' } },
    tools: [{
      type: 'function',
      function: {
        ...TOOL.function,
        function: (wanted) => { called.push(wanted); return 'sunny'; },
        parse: (text) => Forecast.parse(JSON.parse(text)),
      },
    }],
  });
  await runner.done();
  assert.ok(called.length > 0);
});

test('streamed tool call', async () => {
  const stream = sdk.chat.completions.stream({
    model: CALLER, messages: QUESTION, tools: [TOOL], ...only,
  });
  const final = await stream.finalChatCompletion();
  Forecast.parse(JSON.parse(final.choices[0].message.tool_calls[0].function.arguments));
});

test('parsed answer', async () => {
  const reply = await sdk.chat.completions.parse({
    model: CALLER,
    messages: QUESTION,
    response_format: zodResponseFormat(Forecast, 'forecast'),
    max_tokens: 200,
  });
  Forecast.parse(reply.choices[0].message.parsed);
});

test('text completion', async () => {
  const reply = await sdk.completions.create({ model: GUIDE, prompt: 'edged is', max_tokens: 5 });
  assert.ok(reply.choices[0].text);
});

test('embeddings', async () => {
  const reply = await sdk.embeddings.create({ model: EMBEDDER, input: ['one', 'two', 'one'] });
  const [one, two, again] = reply.data.map((each) => each.embedding);
  // Vectors of length 1; what shares a batch changes the last digits.
  const cosine = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
  assert.ok(cosine(one, again) > 0.999 && cosine(one, two) < 0.999);
  assert.ok(Math.abs(cosine(one, one) - 1) < 1e-3);
});

test('response, retrieved, continued and deleted', async () => {
  const reply = await sdk.responses.create({ model: GUIDE, input: 'What is edged?' });
  assert.match(reply.output_text, /edged/);
  assert.equal((await sdk.responses.retrieve(reply.id)).output_text, reply.output_text);
  const more = await sdk.responses.create({
    model: GUIDE, input: 'And where are its logs?', previous_response_id: reply.id,
  });
  assert.ok(more.usage.input_tokens > reply.usage.input_tokens);
  await sdk.responses.delete(reply.id);
  await assert.rejects(sdk.responses.retrieve(reply.id), OpenAI.NotFoundError);
});

test('response stream', async () => {
  let text = '';
  const stream = sdk.responses.stream({ model: GUIDE, input: 'What is edged?' });
  stream.on('response.output_text.delta', (event) => { text += event.delta; });
  const final = await stream.finalResponse();
  assert.equal(final.output_text, text);
});

test('parsed response', async () => {
  const reply = await sdk.responses.parse({
    model: CALLER, input: 'hi', text: { format: zodTextFormat(Forecast, 'forecast') },
  });
  Forecast.parse(reply.output_parsed);
});

test('errors are the SDK\'s own', async () => {
  await assert.rejects(
    sdk.chat.completions.create({ model: 'nobody', messages: QUESTION }),
    (error) => error instanceof OpenAI.NotFoundError && error.code === 'model_not_found',
  );
  await assert.rejects(
    sdk.chat.completions.create({ model: GUIDE, messages: QUESTION, temperature: 9 }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === 'temperature',
  );
});

test('timeout and abort', async () => {
  const long = { model: CALLER, messages: QUESTION, max_tokens: LONG, ignore_eos: true };
  await assert.rejects(
    sdk.chat.completions.create(long, { timeout: TOO_SHORT_MS }), OpenAI.APIConnectionTimeoutError,
  );
  const leaving = new AbortController();
  const stream = await sdk.chat.completions.create(
    { ...long, stream: true }, { signal: leaving.signal },
  );
  for await (const _ of stream) leaving.abort();
  assert.ok(leaving.signal.aborted);
});
