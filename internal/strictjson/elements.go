package strictjson

// maxMembers is how many members one object may have.
const maxMembers = 1000

// Elements returns how many elements the lists in a JSON text have together, or
// more than limit where there are more, it nests too deeply, or an object has too
// many members. Text that is not JSON may have any number. It takes no memory that
// grows with the text, so that it can be called before the text is decoded.
func Elements(data []byte, limit int) int {
	c := counter{limit: limit}
	for i := 0; i < len(data) && c.n <= limit; i++ {
		switch data[i] {
		case '"':
			i = endOfString(data, i)
		case '[', '{':
			c.open(data[i] == '[')
		case ']', '}':
			c.stack = c.stack[:max(0, len(c.stack)-1)]
		case ',':
			c.next()
		}
	}
	return c.n
}

// counter counts the elements of lists.
type counter struct {
	limit int
	n     int
	stack []container // what is open
}

type container struct {
	list  bool
	items int
}

// open begins a list or an object.
func (c *counter) open(list bool) {
	if list {
		c.n++
	}
	if c.stack = append(c.stack, container{list: list}); len(c.stack) > deepest {
		c.n = c.limit + 1
	}
}

// next begins another element or member.
func (c *counter) next() {
	if len(c.stack) == 0 {
		return
	}
	top := &c.stack[len(c.stack)-1]
	switch top.items++; {
	case top.list:
		c.n++
	case top.items >= maxMembers:
		c.n = c.limit + 1
	}
}

// endOfString returns where the string that begins at i ends.
func endOfString(data []byte, i int) int {
	for i++; i < len(data) && data[i] != '"'; i++ {
		if data[i] == '\\' {
			i++
		}
	}
	return i
}
