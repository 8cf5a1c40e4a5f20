// A client of the REST API, typed by openapi-typescript from docs/openapi.json. test_generated_clients.py
// compiles it with --strict and runs it.
import createClient from "openapi-fetch";
import type { components, paths } from "./openapi.js";

declare const process: { argv: string[] };
const [baseUrl, token, url] = process.argv.slice(2) as [string, string, string];
const api = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token}` } });

async function connect(): Promise<components["schemas"]["ConnectionCreated"]> {
  const { data, error } = await api.POST("/api/v1/connections", {
    body: {
      provider: "github",
      url,
      project: "letters",
      triggers: [{ name: "train", branches: ["main"], run: { step: "train" } }],
    },
  });
  if (error) throw new Error(error.detail);
  return data;
}

async function deliveries(): Promise<components["schemas"]["DeliveryView"][]> {
  const found = [];
  let cursor: string | undefined;
  do {
    const { data, error } = await api.GET("/api/v1/deliveries", {
      params: { query: { verdict: "accepted", limit: 1, cursor } },
    });
    if (error) throw new Error(error.detail);
    found.push(...data.items);
    cursor = data.next ?? undefined;
  } while (cursor !== undefined);
  return found;
}

async function execution(id: string): Promise<string> {
  const { data, error } = await api.GET("/api/v1/executions/{id}", { params: { path: { id } } });
  if (error) throw new Error(error.detail);
  const what = data.message.execution;
  switch (what.kind) {
    case "step":
      return `${what.name} in ${what.image}`;
    case "pipeline":
      return `${what.name} of ${what.nodes.length} nodes`;
    case "task":
      return `${what.name} with ${what.step.name}`;
    default:
      return what satisfies never;
  }
}

const made = await connect();
// What an answer shows can be sent again.
const { data: changed } = await api.PATCH("/api/v1/connections/{id}", {
  params: { path: { id: made.id } },
  body: { triggers: made.triggers, follows: ["main"] },
});
const { data: pending } = await api.GET("/api/v1/executions", { params: { query: { state: "pending" } } });
const { error: missing } = await api.GET("/api/v1/deliveries/{id}", { params: { path: { id: "none" } } });
console.log(
  JSON.stringify({
    secret: made.secret.length,
    triggers: changed?.triggers.map((trigger) => trigger.run.step),
    deliveries: (await deliveries()).map((delivery) => delivery.id),
    executions: await Promise.all((pending?.items ?? []).map((item) => execution(item.id))),
    missing: missing?.error,
  }),
);

// Mistakes that the types refuse.
export const mistakes: components["schemas"]["NewConnection"][] = [
  // @ts-expect-error: no such provider
  { provider: "githup", url, project: "letters" },
  // @ts-expect-error: the project is missing
  { provider: "github", url },
  // @ts-expect-error: a trigger has no field `branch`
  { provider: "github", url, project: "letters", triggers: [{ name: "train", branch: "main", run: {} }] },
];
