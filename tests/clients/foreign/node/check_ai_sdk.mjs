// Vercel's AI SDK, with both providers that people use for a server of their own.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import {
  APICallError, Output, embed, embedMany, generateText, isStepCount, stepCountIs, streamText, tool,
} from 'ai';
import { CALLER, EMBEDDER, Forecast, GUIDE, KEY, LONG, V1 } from './appliance.mjs';

const compatible = createOpenAICompatible({
  name: 'edged', baseURL: V1, apiKey: KEY, includeUsage: true, supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL: V1, apiKey: KEY });
const providers = {
  'openai-compatible': (name) => compatible.chatModel(name),
  'openai chat': (name) => openai.chat(name),
  'openai responses': (name) => openai.responses(name),
};
const prompt = 'What is edged?';
const maxRetries = 0;

for (const [name, model] of Object.entries(providers)) {
  test(`${name}: answer has words and usage`, async () => {
    const reply = await generateText({ model: model(GUIDE), prompt, maxRetries });
    assert.match(reply.text, /edged/);
    assert.ok(reply.usage.outputTokens > 0 && reply.usage.inputTokens > 0);
  });

  test(`${name}: stream`, async () => {
    const stream = streamText({ model: model(GUIDE), prompt, maxRetries });
    let text = '';
    for await (const piece of stream.textStream) text += piece;
    assert.match(text, /edged/);
    assert.ok((await stream.usage).outputTokens > 0);
    assert.equal(await stream.finishReason, 'stop');
  });

  test(`${name}: tool call and its answer`, async () => {
    const called = [];
    const forecast = tool({
      description: 'The weather of the next days',
      inputSchema: Forecast,
      execute: async (wanted) => { called.push(wanted); return 'sunny'; },
    });
    const reply = await generateText({
      model: model(CALLER),
      prompt,
      tools: { forecast },
      toolChoice: 'required',
      maxOutputTokens: 200,
      maxRetries,
      stopWhen: (isStepCount ?? stepCountIs)(2),
    });
    assert.equal(reply.steps.length, 2, reply.finishReason);
    assert.ok(called.length >= 2);
    called.forEach((wanted) => Forecast.parse(wanted));
  });

  test(`${name}: streamed tool call`, async () => {
    const stream = streamText({
      model: model(CALLER),
      prompt,
      tools: { forecast: tool({ inputSchema: Forecast }) },
      toolChoice: { type: 'tool', toolName: 'forecast' },
      maxOutputTokens: 200,
      maxRetries,
    });
    const calls = await stream.toolCalls;
    assert.ok(calls.length > 0);
    calls.forEach((call) => Forecast.parse(call.input));
    assert.equal(await stream.finishReason, 'tool-calls');
  });

  test(`${name}: structured output`, async () => {
    const reply = await generateText({
      model: model(CALLER), prompt, output: Output.object({ schema: Forecast }), maxRetries,
    });
    Forecast.parse(reply.output);
  });

  test(`${name}: errors`, async () => {
    await assert.rejects(
      generateText({ model: model('nobody'), prompt, maxRetries }),
      (error) => APICallError.isInstance(error) && error.statusCode === 404,
    );
  });

  test(`${name}: abort`, async () => {
    await assert.rejects(generateText({
      model: model(CALLER),
      prompt,
      maxOutputTokens: LONG,
      maxRetries,
      abortSignal: AbortSignal.timeout(1), // a random model may be done after a few tokens
    }));
  });
}

test('embeddings', async () => {
  for (const model of [compatible.embeddingModel(EMBEDDER), openai.embedding(EMBEDDER)]) {
    const one = await embed({ model, value: 'one', maxRetries });
    assert.ok(one.embedding.length > 1);
    const many = await embedMany({ model, values: ['one', 'two'], maxRetries });
    assert.equal(many.embeddings.length, 2);
  }
});
