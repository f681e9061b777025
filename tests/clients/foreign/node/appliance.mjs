// What the checks ask of the daemon; see ../python/appliance.py.
import { z } from 'zod';

export const URL = process.env.EDGED_URL;
export const V1 = `${URL}/v1`;
export const KEY = 'none';
export const GUIDE = 'edge-guide';
export const CALLER = 'tool-caller';
export const EMBEDDER = 'embedder';
export const LONG = 4000;
export const TOO_SHORT_MS = 50;
export const QUESTION = [{ role: 'user', content: 'What is edged?' }];

export const Forecast = z.object({
  city: z.enum(['Berlin', 'Paris', 'Tokyo']),
  days: z.int().min(1).max(9),
  hourly: z.boolean(),
});
export const TOOL = {
  type: 'function',
  function: {
    name: 'forecast',
    description: 'The weather of the next days',
    parameters: {
      type: 'object',
      properties: {
        city: { type: 'string', enum: ['Berlin', 'Paris', 'Tokyo'] },
        days: { type: 'integer', minimum: 1, maximum: 9 },
        hourly: { type: 'boolean' },
      },
      required: ['city', 'days', 'hourly'],
      additionalProperties: false,
    },
  },
};
