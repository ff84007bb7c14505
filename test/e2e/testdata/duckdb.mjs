// Runs SQL in DuckDB. Argument: a directory with node_modules/@duckdb/node-api.
// Standard input: a JSON array of statements. Standard output: a JSON array with
// the rows of each.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const require = createRequire(join(process.argv[2], 'package.json'));
const { DuckDBInstance } = require('@duckdb/node-api');
const instance = await DuckDBInstance.create(':memory:', { autoinstall_known_extensions: 'false' });
const connection = await instance.connect();
const answers = [];
for (const sql of JSON.parse(readFileSync(0, 'utf8'))) {
  try {
    answers.push((await connection.runAndReadAll(sql)).getRowObjectsJson());
  } catch (e) {
    console.error(`${e.message}\n${sql}`);
    process.exit(1);
  }
}
console.log(JSON.stringify(answers));
