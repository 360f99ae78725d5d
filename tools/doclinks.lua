-- Link `names in backticks` to their documentation on every page, with nbdev's own symbol index.
-- `name`, `module.name`, `mudenet.module.name` and `mudenet.module` are known; a member leads to its class.
-- Quarto renders no README.md: beside each stands an index.qmd that includes it, and links lead there.
local names, pages = {}, {}
local root = quarto.project.directory or "."

local function add(name, link)
  names[name] = names[name] or link
end

local function load()
  for _, f in ipairs(pandoc.system.list_directory(root .. "/nbs")) do
    if f:match("%.ipynb$") then
      local module = f:lower():gsub("%.ipynb$", ""):gsub("^%d+%w*_", "")
      pages[module] = f
      add("mudenet." .. module, "/nbs/" .. f)
    end
  end
  -- configuration fields come first: `data.image_size` is one, although a module and a function are called so too
  local group
  for line in io.lines(root .. "/mudenet/config.py") do
    if line:match("^class ") then group = line:match("^class (%w+)Config") end
    local field = line:match("^    ([%w_]+): [^=]+ = ")
    if group and field then
      for _, name in ipairs(group == "Stage" and { "distill", "train" } or { group:lower() }) do
        add(name .. "." .. field, "/nbs/" .. pages.config .. "#" .. group:lower() .. "config")
      end
    end
  end
  local file = io.open(root .. "/mudenet/_modidx.py")
  if not file then return end
  for sym, page, anchor in file:read("a"):gmatch("'([%w_%.]+)':%s*%(%s*'([%w_]+)%.html#([^']+)'") do
    local module, name = sym:match("^mudenet%.([%w_]+)%.(.+)$")
    if pages[page] and name and not name:match("^_") and not name:match("%._") then
      local link = "/nbs/" .. pages[page] .. "#" .. anchor:gsub("%..*$", "")
      add(sym, link)
      add(module .. "." .. name, link)
      add(name, link)
    end
  end
  file:close()
end

load()
return {
  traverse = "topdown",
  Link = function(el)
    if not el.target:match("^%a+://") then el.target = el.target:gsub("README%.md", "index.qmd") end
    return el, false
  end,
  Header = function(el) return el, false end,
  Code = function(el)
    local link = names[(el.text:gsub("%(%)$", ""))]
    if link then return pandoc.Link({ el }, link), false end
  end,
}
