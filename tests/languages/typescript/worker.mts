// worker.mts
import { readFileSync } from "node:fs";
import { connect } from "@nats-io/transport-node";
import { Svcm } from "@nats-io/services";

// Where `trine up` runs: TRINE_NATS, else what it has noted in this directory.
const servers =
  process.env.TRINE_NATS ?? JSON.parse(readFileSync(".trine/server.json", "utf8")).nats;
const namespace = process.env.TRINE_NAMESPACE ?? "trine";
const nats = await connect({ servers, maxReconnectAttempts: 150 }); // 5 minutes, then it ends
const service = await new Svcm(nats).add({ name: "text", version: "1.0.0" });

service.addEndpoint("text-words", {
  subject: `${namespace}.fn.text.words`, // makes it the function text.words
  metadata: {
    description: "Count the words of a text.",
    timeout: "10", // seconds for one run
    input_schema: JSON.stringify({
      type: "object", properties: { text: { type: "string" } }, required: ["text"],
    }),
    output_schema: JSON.stringify({ type: "object", properties: { words: { type: "integer" } } }),
  },
  handler: (_, request) => {
    const refuse = (status: number, code: string, message: string) =>
      request.respondError(status, message, JSON.stringify({ code, message }));
    try {
      const { text } = request.json<{ text: unknown }>();
      if (typeof text !== "string") return refuse(422, "invalid_input", "text: must be a string");
      request.respond(JSON.stringify({ words: text.split(/\s+/).filter(Boolean).length }));
    } catch (error) {
      refuse(422, "invalid_input", `the payload is not a JSON object: ${error}`);
    }
  },
});
await nats.flush(); // the server knows the endpoint
console.log("serving text.words");
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => nats.drain());
await nats.closed(); // what ran has been answered
