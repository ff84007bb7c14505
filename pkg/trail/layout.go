package trail

// Layout is how manifests are encoded and where they stand.
type Layout string

// The layouts.
const (
	LayoutFlat Layout = "flat" // JSON arrays beside the digests
	LayoutHive Layout = "hive" // gzipped JSON lines, partitioned by day and instance
)

// The reasons for a digest.
const (
	ReasonStart    = "start"    // a run begins
	ReasonInterval = "interval" // DigestInterval has passed
	ReasonFlush    = "flush"    // someone asked
	ReasonStop     = "stop"     // the process ends in order; silence follows
	ReasonFinal    = "final"    // the chain ends
)
